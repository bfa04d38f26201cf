"""All traffic to OpenAI-compatible endpoints: one bounded, retrying, metered client.

Requests leave through a sliding window counted in sequences (a request for n completions takes n places), so that one
slow answer holds up nothing. There is one retry layer, this one. What an answer means is decided in `replies.py`.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx2
import openai
from pydantic import SecretStr

from nothing_gpt.config import EndpointSettings, Price
from nothing_gpt.errors import BadRowError, FatalError, TransientError
from nothing_gpt.progress import say
from nothing_gpt.records import Message
from nothing_gpt.replies import Meter, RateLimitError, Reply, UnreachableError, classify, read_reply

AHEAD = 1.2
"""Sequences sent for each that the endpoint works on: what waits there fills a place the moment one is free."""
DEADLINE_S = 600.0
"""Seconds without any answer from the endpoint after which a stage stops."""
FIRST_ANSWER_S = 30.0
"""The same, while it has never been reached: then it is more likely not there than out of order."""
TIMEOUT_S = 300.0
"""Seconds after which one request is given up and sent again."""
ROW_ATTEMPTS = 8
"""Failures of its own after which a request is set aside: others were answered in between, or it is the last one left.
An outage is no failure of its own, nor is being one of too many (429)."""
STRANGERS = 8
"""Answers in succession by another model than the rows' after which the endpoint is taken to have changed it."""
NEWCOMERS = 3
"""The same before any row was answered, where it is only known what was asked for."""
LONGEST_BACKOFF_S = 30.0

Job = TypeVar("Job")


@dataclass(frozen=True)
class Service:
    """Something that answers, not yet opened: `connect` gives its address and may start it, so that nothing is
    started where nothing is to be asked. `identity` says what answers, whatever its address or the name it goes by."""

    connect: Callable[[], str]
    model: str
    identity: str
    api_key: SecretStr | None = None

    def open(self) -> tuple[str, str]:
        """The address and the key to send. Raises FatalError for an address that is none, or a key that can be none."""
        url = self.connect()
        key = self.api_key.get_secret_value().strip() if self.api_key else "none"
        if not url.startswith(("http://", "https://")):
            raise FatalError(f"{url}: no address of an endpoint; write it as http://host:port/v1")
        if not (key.isascii() and key.isprintable()):
            raise FatalError(f"{url}: the key for it holds characters that no key has; set it anew")
        return url, key


def price_of(model: str, settings: EndpointSettings, group: str) -> Price | None:
    """The model's price, or None where it is not known. Raises FatalError where a spending limit needs it."""
    price = settings.prices.get(model)
    if settings.max_cost_usd is not None and price is None:
        raise FatalError(f"{group}.max_cost_usd: no price is known for {model}; add it to {group}.prices")
    return price


class Window:
    """How many sequences may be in flight: additive increase, multiplicative decrease, between 1 and `most`."""

    def __init__(self, most: int):
        self.most = most
        self.limit = float(most)
        self._used = 0
        self._changed = asyncio.Condition()
        self._shrunk = -math.inf

    async def acquire(self, sequences: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._used == 0 or self._used + sequences <= self.limit)
            self._used += sequences

    async def release(self, sequences: int) -> None:
        async with self._changed:
            self._used -= sequences
            self._changed.notify_all()

    def grow(self) -> None:
        self.limit = min(self.most, self.limit + 1 / self.limit)

    def shrink(self) -> None:
        """Halves the window, at most once a second: the refusals of one burst are one signal."""
        if time.monotonic() - self._shrunk > 1:
            self._shrunk = time.monotonic()
            self.limit = max(1.0, self.limit / 2)


class Endpoint:
    """A connection to one service. An async context manager."""

    def __init__(
        self,
        service: Service,
        settings: EndpointSettings,
        group: str,
        answered_by: str | None = None,
        meter: Meter | None = None,
    ):
        """`group` is the settings' name, for messages. Of the rows kept from before, `answered_by` is the model that
        answered them and `meter` what they cost.

        Raises:
            FatalError: a spending limit without a price, an address that is none, or a key that can be none.
        """
        price = price_of(service.model, settings, group)
        self.model = service.model
        self.url, self._key = service.open()
        self.meter = meter or Meter(price)
        self.window = Window(int(AHEAD * settings.concurrency))
        self._group = group
        self._most_usd = settings.max_cost_usd if settings.max_cost_usd is not None else math.inf
        self._reserved_usd = 0.0
        self._reservations = 0
        self._settled = asyncio.Event()
        self._answered_by = answered_by
        self._strangers = 0
        self._pause_until = 0.0
        self._last_answer = time.monotonic()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._all_started = False
        limits = httpx2.Limits(max_connections=self.window.most + 4, max_keepalive_connections=self.window.most + 4)
        timeout = openai.Timeout(TIMEOUT_S, connect=10)
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAioHttpClient(limits=limits, timeout=timeout),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def each(
        self, jobs: Iterable[Job], sequences: Callable[[Job], int], handle: Callable[[Job], Awaitable[None]]
    ) -> None:
        """Runs `handle` for each job as the window has room. After a first exception nothing new is started, what is
        in flight is awaited (it is paid for), and the exception is raised."""

        async def one(job: Job, size: int) -> None:
            try:
                await handle(job)
            except BaseException as error:
                self._failure = self._failure or error
                self._failed.set()
            finally:
                await self.window.release(size)

        for job in jobs:
            size = sequences(job)
            await self.window.acquire(size)
            if self._failure:
                break
            task = asyncio.create_task(one(job, size))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        self._all_started = True
        while self._running:
            await asyncio.wait(self._running)
        if self._failure:
            raise self._failure

    async def chat(self, messages: list[Message], max_tokens: int, n: int = 1, **parameters: Any) -> Reply:
        """One request, tried again while its errors may pass.

        Raises:
            BadRowError: this request cannot be answered. FatalError: no request can, or it might exceed the spending
                limit. TransientError: the endpoint gave no answer at all for `DEADLINE_S` seconds.
        """
        request = {"model": self.model, "messages": messages, "max_tokens": max_tokens, **parameters}
        most_usd = self.meter.most(messages, n * max_tokens)
        await self._afford(most_usd)
        patience = _Patience(self)
        with self._reserving(most_usd):
            while True:
                try:
                    return await self._ask(request if n == 1 else request | {"n": n})
                except TransientError as error:
                    wait = patience.after(error)
                    self.meter.retries += 1
                    if isinstance(error, RateLimitError):
                        self.window.shrink()
                        self._pause_until = max(self._pause_until, time.monotonic() + error.retry_after)
                    await self._pause(wait)

    async def served(self) -> list[str]:
        """Names of the models that the endpoint serves.

        Raises:
            FatalError: this is no OpenAI-compatible endpoint. TransientError: it does not answer.
        """
        try:
            return [model.id async for model in self._client.models.list()]
        except openai.APIError as error:
            raise classify(error, self.url, self.model, self._key) from None
        except (AttributeError, TypeError, ValueError):
            raise FatalError(
                f"{self.url}: not an OpenAI-compatible endpoint (its /models is not a list of models); "
                "check the address, which usually ends in /v1"
            ) from None

    async def _ask(self, request: dict[str, Any]) -> Reply:
        while (wait := self._pause_until - time.monotonic()) > 0 and not self._failure:
            await self._pause(wait)
        if self._failure:
            raise self._failure
        started = time.monotonic()
        try:
            # The raw response: parsing it into the client's models takes longer than all that we do with it.
            response = await self._client.post("/chat/completions", body=request, cast_to=httpx2.Response)
        except openai.NotFoundError as error:
            raise await self._explain_missing(error) from None
        except openai.APIError as error:
            raise classify(error, self.url, self.model, self._key) from None
        if "html" in response.headers.get("content-type", "") and not self.meter.calls:
            raise FatalError(
                f"{self.url}: not an OpenAI-compatible endpoint (it answers with a page, not with JSON); "
                "check the address, which usually ends in /v1"
            )
        reply = read_reply(response.content, self.url)
        self._check_model(reply.model)
        self._last_answer = time.monotonic()
        self.meter.count(reply, self._last_answer - started)
        self.window.grow()
        return reply

    def _check_model(self, name: str) -> None:
        """Rows of one stage come from one model. A reply by another is a fault; several in succession are a change.

        A first answer settles which model it is where its name holds the one asked for (a dated version, a path); any
        other name is settled by `NEWCOMERS` answers in succession.

        Raises:
            TransientError: a stranger answered. FatalError: the endpoint answers by another model than before.
        """
        if not name or name == self._answered_by:
            self._strangers = 0
            return
        if self._answered_by is None and self.model.rpartition("/")[2] in name:
            self._answered_by = name
            return
        self._strangers += 1
        if self._strangers < (STRANGERS if self._answered_by else NEWCOMERS):
            raise TransientError(f"{self.url}: {self.model} was answered by {name}")
        if self._answered_by is None:
            say(f"{self.url}: {self.model} is answered by {name}")
            self._answered_by, self._strangers = name, 0
            return
        raise FatalError(
            f"{self.url}: {self.model} was answered by {self._answered_by}, and now by {name}; what was answered is "
            f"kept; set {self._group}.model to the model that all rows shall come from, and run again"
        )

    async def _explain_missing(self, error: openai.NotFoundError) -> FatalError:
        try:
            names = ", ".join(await self.served()) or "nothing"
        except (FatalError, TransientError):
            return FatalError(f"{self.url}: not an OpenAI-compatible endpoint (404); the address usually ends in /v1")
        return FatalError(f"{self.url}: does not serve {self.model!r}; it serves: {names}")

    async def _afford(self, most_usd: float) -> None:
        """Waits where what is in flight may cost less than was reserved for it.

        Raises:
            FatalError: the request might exceed the spending limit.
        """
        while (self.meter.cost_usd or 0.0) + self._reserved_usd + most_usd > self._most_usd:
            if not self._reservations:
                answered = self.meter.calls + self.meter.kept
                raise FatalError(
                    f"{self._group}.max_cost_usd: {self._most_usd} would be exceeded after {answered} calls; "
                    "the answers so far are kept; raise the limit and run again"
                )
            self._settled.clear()
            await self._settled.wait()

    @contextmanager
    def _reserving(self, usd: float) -> Iterator[None]:
        self._reserved_usd += usd
        self._reservations += 1
        try:
            yield
        finally:
            self._reservations -= 1
            # Back to nothing exactly: sums of fractions do not return to zero by themselves.
            self._reserved_usd = self._reserved_usd - usd if self._reservations else 0.0
            self._settled.set()

    async def _pause(self, seconds: float) -> None:
        """Waits, but no longer once the work has failed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._failed.wait(), seconds)


class _Patience:
    """How long one request is tried again."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint
        self._first_sent = self._last_failed = time.monotonic()
        self._attempts = 0
        self._own_failures = 0

    def after(self, error: TransientError) -> float:
        """Seconds to wait after a failure. Raises what `Endpoint.chat` does where it has been tried long enough."""
        endpoint, now = self._endpoint, time.monotonic()
        if endpoint._failure:
            raise endpoint._failure
        self._attempts += 1
        others_answered = endpoint._last_answer > self._last_failed
        last_one = endpoint._all_started and len(endpoint._running) == 1 and endpoint.meter.calls > 0
        if (others_answered or last_one) and not isinstance(error, RateLimitError):
            self._own_failures += 1
        self._last_failed = now
        never_reached = isinstance(error, UnreachableError) and not endpoint.meter.calls
        patience = FIRST_ANSWER_S if never_reached else DEADLINE_S
        silent = now - max(endpoint._last_answer, self._first_sent)
        retry_after = error.retry_after if isinstance(error, RateLimitError) else 0.0
        if self._own_failures >= ROW_ATTEMPTS:
            raise BadRowError(f"{error} ({self._attempts} times)", attempts=self._attempts)
        if retry_after > DEADLINE_S:
            raise FatalError(
                f"{error}; it asks to come back in {retry_after / 60:.0f} minutes; what was answered is kept; run "
                "again then"
            )
        if silent > patience and never_reached:
            raise FatalError(str(error))
        if silent > patience and endpoint._all_started and not isinstance(error, UnreachableError | RateLimitError):
            # Nothing else is left to ask that would tell whether it is the row's fault: the share of such rows decides.
            raise BadRowError(f"{error} ({self._attempts} times, no other answer)", attempts=self._attempts)
        if silent > patience:
            raise TransientError(
                f"{endpoint.url}: no answer for {DEADLINE_S / 60:.0f} minutes ({error}); "
                "what was answered is kept; run again when it is back"
            )
        return _backoff(self._attempts)


def _backoff(attempt: int) -> float:
    """Seconds, exponential with full jitter, so that many rows do not come back at once."""
    return random.uniform(0, min(0.5 * 2**attempt, LONGEST_BACKOFF_S))
