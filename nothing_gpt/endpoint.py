"""All traffic to OpenAI-compatible endpoints: one bounded, retrying, metered client.

Requests leave through a sliding window counted in sequences (a request for n completions takes n places), so that one
slow answer holds up nothing. There is one retry layer, this one. What an answer means is decided in `replies.py`.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx2
import openai
from pydantic import SecretStr

from nothing_gpt.config import EndpointSettings, Price
from nothing_gpt.errors import BadRowError, FatalError, SpendingLimitError, TransientError
from nothing_gpt.progress import say
from nothing_gpt.records import Message
from nothing_gpt.replicas import Replica, Replicas, addresses
from nothing_gpt.replies import Meter, RateLimitError, Reply, UnreachableError, classify, read_reply
from nothing_gpt.window import Window

AHEAD = 1.2
"""Sequences sent for each that the endpoint works on: what waits there fills a place the moment one is free."""
DEADLINE_S = 600.0
"""Seconds without any answer from the endpoint after which a stage stops."""
FIRST_ANSWER_S = 30.0
"""The same, while it has never been reached: then it is more likely not there than out of order."""
TIMEOUT_S = 300.0
"""Seconds after which one request is given up and sent again."""
ROW_ATTEMPTS = 8
"""Failures of its own after which a request is set aside: others were answered in between. An outage is no failure of
its own, nor is being one of too many (429)."""
OUTAGE_S = 150.0
"""Seconds without any answer that may be an outage though the endpoint is there. Where none but failing requests are
left, these are set aside after it; those that are too many (429) after `DEADLINE_S`."""
STRANGERS = 8
"""Answers in succession by another model than the rows' after which the endpoint is taken to have changed it."""
NEWCOMERS = 3
"""The same before any row was answered, where it is only known what was asked for."""
LONGEST_BACKOFF_S = 10.0
WAITING = 12
"""Requests between two tries that leave their places in the window to others. More would only fill the memory: then it
is no row's fault but an outage."""

Job = TypeVar("Job")


@dataclass(frozen=True)
class Service:
    """Something that answers, not yet opened: `connect` gives its address (its replicas', with commas between) and may
    start it, so that nothing is started where nothing is to be asked. `identity` says what answers, whatever its
    addresses, their number or the name it goes by. `permit` is awaited before each request that is sent: it keeps a
    rate that others share, and raises what `Endpoint.chat` does."""

    connect: Callable[[], str]
    model: str
    identity: str
    api_key: SecretStr | None = None
    permit: Callable[[], Awaitable[None]] | None = None

    def open(self) -> tuple[list[str], str]:
        """The addresses and the key to send. Raises FatalError for no address, or a key that can be none."""
        urls = addresses(self.connect())
        (key,) = {checked_key(self.api_key, url) for url in urls}
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise FatalError(f"{url}: no address of an endpoint; write it as http://host:port/v1")
        return urls, key or "none"


def checked_key(secret: SecretStr | None, url: str) -> str:
    """The key to send to an address, "" where there is none. Raises FatalError, which shows no secret, for a key that
    can be none, or one within the address."""
    key = secret.get_secret_value().strip() if secret else ""
    if "@" in url:
        raise FatalError(f"{url.rpartition('@')[2]}: give its user and password as a key, not in the address")
    if not (key.isascii() and key.isprintable()):
        raise FatalError(f"{url}: the key for it holds characters that no key has; set it anew")
    return key


def price_of(model: str, settings: EndpointSettings, group: str) -> Price | None:
    """The model's price, or None where it is not known. Raises FatalError where a spending limit needs it."""
    price = settings.prices.get(model)
    if settings.max_cost_usd is not None and price is None:
        raise FatalError(f"{group}.max_cost_usd: no price is known for {model}; add it to {group}.prices")
    return price


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
        urls, self._key = service.open()
        self.url = ", ".join(urls)
        self.meter = meter or Meter(price)
        self._share = int(AHEAD * settings.concurrency)
        self.window = Window(self._share * len(urls))
        self._permit = service.permit
        self._group = group
        self._most_usd = settings.max_cost_usd if settings.max_cost_usd is not None else math.inf
        self._reserved_usd = 0.0
        self._reservations = 0
        self._settled = asyncio.Event()
        self._short = 0
        self._solvent = asyncio.Event()
        self._solvent.set()
        self._answered_by = answered_by
        self._stranger, self._strangers = "", 0
        self._pause_until = 0.0
        self._last_answer = time.monotonic()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._all_started = False
        self._retrying = 0
        self._aside = 0
        limits = httpx2.Limits(max_connections=self.window.most + 4, max_keepalive_connections=self.window.most + 4)
        timeout = openai.Timeout(TIMEOUT_S, connect=10)
        self._http = openai.DefaultAioHttpClient(limits=limits, timeout=timeout)
        self.replicas = Replicas([self._replica(url, timeout) for url in urls])

    def _replica(self, url: str, timeout: openai.Timeout) -> Replica:
        client = openai.AsyncOpenAI(
            base_url=url, api_key=self._key, max_retries=0, timeout=timeout, http_client=self._http
        )
        return Replica(url, self.model, client, self._key)

    async def __aenter__(self) -> Self:
        try:
            await self.replicas.check()
        except BaseException:
            await self._http.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

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
                self.window.release(size)

        for job in jobs:
            size = sequences(job)
            await self._solvent.wait()
            await self.window.acquire(size)
            if self._failure:
                self.window.release(size)
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
        async with self._reserving(most_usd, n):
            patience = _Patience(self)
            with patience:
                while True:
                    try:
                        return await self._ask(request if n == 1 else request | {"n": n}, n)
                    except TransientError as error:
                        wait = await patience.after(error)
                        self.meter.retries += 1
                        if isinstance(error, RateLimitError):
                            self.window.shrink()
                            self._pause_until = max(self._pause_until, time.monotonic() + error.retry_after)
                        await self._step_aside(wait, n)

    async def served(self) -> list[str]:
        """Names of the models that the endpoint serves, of several replicas the first.

        Raises:
            FatalError: this is no OpenAI-compatible endpoint. TransientError: it does not answer.
        """
        return await self.replicas.served()

    async def _ask(self, request: dict[str, Any], sequences: int) -> Reply:
        while (wait := self._pause_until - time.monotonic()) > 0 and not self._failure:
            await self._pause(wait)
        if self._failure:
            raise self._failure
        if self._permit:
            await self._permit()
        try:
            async with self.replicas.one() as replica:
                return await self._ask_at(replica, request, sequences)
        finally:
            self.window.resize(self._share * self.replicas.left)

    async def _ask_at(self, replica: Replica, request: dict[str, Any], sequences: int) -> Reply:
        started, url = time.monotonic(), replica.url
        try:
            # The raw response: parsing it into the client's models takes longer than all that we do with it.
            async with asyncio.timeout(TIMEOUT_S):  # the client's own is for each read, however little it brings
                response = await replica.client.post("/chat/completions", body=request, cast_to=httpx2.Response)
        except TimeoutError:
            raise TransientError(f"{url}: no answer in {TIMEOUT_S:.0f} s") from None
        except openai.NotFoundError:
            raise await replica.explain_missing() from None
        except openai.APIError as error:
            raise classify(error, url, self.model, self._key) from None
        if "html" in response.headers.get("content-type", "") and not self.meter.calls:
            await replica.served()  # which says so where this is no endpoint at all
        reply = read_reply(response.content, url, self._key)
        self.meter.count(reply, time.monotonic() - started)  # whoever answered, it is paid for
        self._check_model(reply.model)
        self._last_answer = time.monotonic()
        self.window.grow(sequences)
        return reply

    def _check_model(self, name: str) -> None:
        """Rows of one stage come from one model. A reply by another is a fault; several in succession are a change.

        A first answer settles which model it is where its name holds the one asked for (a dated version, a path); any
        other name is settled by `NEWCOMERS` answers in succession.

        Raises:
            TransientError: a stranger answered. FatalError: the endpoint answers by another model than before.
        """
        if not name or name == self._answered_by:
            self._stranger, self._strangers = "", 0
            return
        if self._answered_by is None and self.model.rpartition("/")[2] in name:
            self._answered_by = name
            return
        self._strangers = self._strangers + 1 if name == self._stranger else 1
        self._stranger = name
        if self._strangers < (STRANGERS if self._answered_by else NEWCOMERS):
            raise TransientError(f"{self.url}: {self.model} was answered by {name}")
        if self._answered_by is None:
            say(f"{self.url}: {self.model} is answered by {name}")
            self._answered_by = name
            return
        raise FatalError(
            f"{self.url}: {self.model} was answered by {self._answered_by}, and now by {name}; what was answered is "
            f"kept; set {self._group}.model to the model that all rows shall come from, and run again"
        )

    @asynccontextmanager
    async def _reserving(self, usd: float, sequences: int) -> AsyncIterator[None]:
        """Keeps back what a request can cost, until it is known what it did cost. Where that is too much it waits, as
        what is in flight may cost less than it can.

        Raises:
            SpendingLimitError: the request might exceed the spending limit.
        """
        waits = self._exceeds(usd)
        if waits:  # not in flight: its place is free for one that is tried again, and no other job is begun
            self._short += 1
            self._solvent.clear()
            self.window.release(sequences)
        try:
            while self._exceeds(usd):
                if not self._reservations:
                    raise SpendingLimitError(
                        f"{self._group}.max_cost_usd: {self._most_usd} would be exceeded after "
                        f"{self.meter.calls + self.meter.kept} calls; the answers so far are kept; raise the limit and "
                        "run again"
                    )
                self._settled.clear()
                await self._settled.wait()
            self._reserved_usd += usd
            self._reservations += 1
        finally:
            if waits:
                self._short -= 1
                if not self._short:
                    self._solvent.set()
                await self.window.acquire(sequences, again=True)
        try:
            yield
        finally:
            self._reservations -= 1
            # Back to nothing exactly: sums of fractions do not return to zero by themselves.
            self._reserved_usd = self._reserved_usd - usd if self._reservations else 0.0
            self._settled.set()

    def _exceeds(self, usd: float) -> bool:
        spent = (self.meter.cost_usd or 0.0) + self.meter.others_usd
        return spent + self._reserved_usd + usd > self._most_usd

    async def _step_aside(self, seconds: float, sequences: int) -> None:
        """Waits before a request is tried again. A few that wait leave their places to others meanwhile."""
        if self._aside >= WAITING:
            return await self._pause(seconds)
        self._aside += 1
        self.window.release(sequences)
        await self._pause(seconds)
        await self.window.acquire(sequences, again=True)
        self._aside -= 1

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._endpoint._retrying -= self._attempts > 0

    async def after(self, error: TransientError) -> float:
        """Seconds to wait after a failure. Raises what `Endpoint.chat` does where it has been tried long enough."""
        endpoint = self._endpoint
        self._attempts += 1
        endpoint._retrying += self._attempts == 1
        if endpoint._failure:
            raise endpoint._failure
        limited = isinstance(error, RateLimitError)
        self._own_failures += endpoint._last_answer > self._last_failed and not limited
        self._last_failed = now = time.monotonic()
        silent = now - max(endpoint._last_answer, self._first_sent)
        only_such_left = endpoint._all_started and endpoint._retrying == len(endpoint._running)
        has_answered = endpoint.meter.calls + endpoint.meter.kept > 0
        if self._own_failures >= ROW_ATTEMPTS or (
            silent > (DEADLINE_S if limited else OUTAGE_S)
            and only_such_left
            and has_answered
            and await endpoint.replicas.is_there()
        ):
            raise BadRowError(f"{error} ({self._attempts} times)", attempts=self._attempts)
        retry_after = error.retry_after if isinstance(error, RateLimitError) else 0.0
        never_reached = isinstance(error, UnreachableError) and not endpoint.meter.calls
        patience = FIRST_ANSWER_S if never_reached else DEADLINE_S
        if retry_after > DEADLINE_S:
            raise FatalError(
                f"{error}; it asks to come back in {retry_after / 60:.0f} minutes; what was answered is kept; run "
                "again then"
            )
        if silent > patience and never_reached:
            raise FatalError(str(error))
        if silent > patience:
            raise TransientError(
                f"{endpoint.url}: no answer for {DEADLINE_S / 60:.0f} minutes ({error}); "
                "what was answered is kept; run again when it is back"
            )
        return _backoff(self._attempts)


def _backoff(attempt: int) -> float:
    """Seconds, exponential with full jitter, so that many rows do not come back at once."""
    return random.uniform(0, min(0.5 * 2 ** min(attempt, 10), LONGEST_BACKOFF_S))
