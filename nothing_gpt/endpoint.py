"""All traffic to OpenAI-compatible endpoints: one bounded, retrying, metered client.

Requests leave through a sliding window counted in sequences (a request for n completions takes n places), so that one
slow answer holds up nothing. There is one retry layer, this one. What a status means is decided in `classify`.
"""

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import httpx2
import openai
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from nothing_gpt.config import Price
from nothing_gpt.errors import BadRowError, FatalError, TransientError
from nothing_gpt.records import Message, whole_characters

DEADLINE_S = 600.0
"""Seconds without any answer from the endpoint after which a stage stops."""
FIRST_ANSWER_S = 30.0
"""The same, while it has never been reached: then it is more likely not there than out of order."""
TIMEOUT_S = 300.0
"""Seconds after which one request is given up and sent again."""
ROW_ATTEMPTS = 8
"""Failures of its own after which a request is set aside: others were answered in between, or it is the last one left.
An outage is no failure of its own, nor is being one of too many (429)."""
LONGEST_WAIT_S = 60.0
SHORTEST_KEY = 6
"""Anything shorter is a placeholder, such as the "none" that keyless servers are sent."""

Job = TypeVar("Job")


@dataclass(frozen=True)
class Service:
    """Something that answers, not yet opened: `connect` gives its address and may start it, so that nothing is
    started where nothing is to be asked. `identity` says what answers, whatever its address or the name it goes by."""

    connect: Callable[[], str]
    model: str
    identity: str
    api_key: SecretStr | None = None


@dataclass(frozen=True)
class Choice:
    """One completion of a reply."""

    text: str
    finish_reason: str


@dataclass(frozen=True)
class Reply:
    """An endpoint's answer to one request. Tokens count all its choices together."""

    model: str
    choices: list[Choice]
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Meter:
    """What a stage asked, and what it cost."""

    price: Price | None = None
    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def cost_usd(self) -> float | None:
        """What was spent, or None where the model's price is not known."""
        return None if self.price is None else self._cost(self.prompt_tokens, self.completion_tokens)

    def most(self, messages: list[Message], max_tokens: int) -> float:
        """The most that a request can cost (USD): a token is taken as at least two bytes of text."""
        prompt = sum(len(message["content"].encode()) for message in messages) / 2
        return self._cost(prompt, max_tokens)

    def count(self, reply: Reply, seconds: float) -> None:
        self.calls += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.seconds.append(seconds)

    def figures(self) -> dict[str, Any]:
        """The counts, for a manifest. Latencies in seconds."""
        cuts = statistics.quantiles(self.seconds, n=20, method="inclusive") if len(self.seconds) > 1 else []
        return {
            "calls": self.calls,
            "retries": self.retries,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": self.cost_usd,
            "latency_p50_s": round(cuts[9], 3) if cuts else None,
            "latency_p95_s": round(cuts[18], 3) if cuts else None,
        }

    def _cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        if self.price is None:
            return 0.0
        return (prompt_tokens * self.price.input + completion_tokens * self.price.output) / 1e6


class Window:
    """How many sequences may be in flight: additive increase, multiplicative decrease, between 1 and `most`."""

    def __init__(self, most: int):
        self.most = most
        self.limit = float(most)
        self._used = 0
        self._changed = asyncio.Condition()
        self._shrunk = 0.0

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
        self, service: Service, concurrency: int, price: Price | None = None, max_cost_usd: float | None = None
    ):
        """`concurrency` is in sequences.

        Raises:
            FatalError: a spending limit without a price, an address that is none, or a key that can be none.
        """
        if max_cost_usd is not None and price is None:
            raise FatalError(f"judge.max_cost_usd: no price is known for {service.model}; add it to judge.prices")
        self.model = service.model
        self.url = service.connect()
        self.meter = Meter(price)
        self.window = Window(concurrency)
        self._max_cost_usd = max_cost_usd
        self._reserved_usd = 0.0
        self._last_answer = time.monotonic()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._all_started = False
        key = service.api_key.get_secret_value().strip() if service.api_key else "none"
        if not self.url.startswith(("http://", "https://")):
            raise FatalError(f"{self.url}: no address of an endpoint; write it as http://host:port/v1")
        if not (key.isascii() and key.isprintable()):
            raise FatalError(f"{self.url}: the key for it holds characters that no key has; set it anew")
        self._key = key
        limits = httpx2.Limits(max_connections=concurrency + 4, max_keepalive_connections=concurrency + 4)
        timeout = openai.Timeout(TIMEOUT_S, connect=10)
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=key,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(limits=limits, timeout=timeout),
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

    async def chat(self, messages: list[Message], max_tokens: int, **parameters: Any) -> Reply:
        """One request, tried again while its errors may pass.

        Raises:
            BadRowError: this request cannot be answered. FatalError: no request can.
            TransientError: the endpoint gave no answer at all for `DEADLINE_S` seconds.
        """
        most = self.meter.most(messages, max_tokens)
        if (
            self._max_cost_usd is not None
            and (self.meter.cost_usd or 0) + self._reserved_usd + most > self._max_cost_usd
        ):
            raise FatalError(
                f"judge.max_cost_usd: {self._max_cost_usd} would be exceeded after {self.meter.calls} calls; "
                "the answers so far are kept; raise the limit and run again"
            )
        first_sent = last_failed = time.monotonic()
        own_failures = 0

        def give_up(state: RetryCallState) -> bool:
            nonlocal last_failed, own_failures
            last_one = self._all_started and len(self._running) == 1 and self.meter.calls > 0
            if (self._last_answer > last_failed or last_one) and not _is_rate_limit(state):
                own_failures += 1
            last_failed = time.monotonic()
            silent = last_failed - max(self._last_answer, first_sent)
            patience = FIRST_ANSWER_S if self._is_unreached(state) else DEADLINE_S
            return self._failure is not None or own_failures >= ROW_ATTEMPTS or silent > patience

        self._reserved_usd += most
        try:
            retrying = AsyncRetrying(
                stop=give_up,
                wait=_wait,
                retry=retry_if_exception_type(TransientError),
                sleep=self._pause,
                before_sleep=self._note_retry,
                reraise=True,
            )
            return await retrying(self._ask, messages, max_tokens, parameters)
        except TransientError as error:
            if own_failures >= ROW_ATTEMPTS:
                raise BadRowError(f"{error} ({ROW_ATTEMPTS} times)") from None
            if isinstance(error, _Unreachable) and not self.meter.calls:
                raise FatalError(str(error)) from None
            raise TransientError(
                f"{self.url}: no answer for {DEADLINE_S / 60:.0f} minutes ({error}); "
                "what was answered is kept; run again when it is back"
            ) from None
        finally:
            self._reserved_usd -= most

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

    async def _ask(self, messages: list[Message], max_tokens: int, parameters: dict[str, Any]) -> Reply:
        if self._failure:
            raise self._failure
        started = time.monotonic()
        request: Any = self._client.chat.completions.create
        try:
            completion = await request(model=self.model, messages=messages, max_tokens=max_tokens, **parameters)
        except openai.NotFoundError as error:
            raise await self._explain_missing(error) from None
        except openai.APIError as error:
            raise classify(error, self.url, self.model, self._key) from None
        except ValueError:
            raise TransientError(f"{self.url}: a reply that is not JSON") from None
        if isinstance(completion, str) and not self.meter.calls:
            raise FatalError(
                f"{self.url}: not an OpenAI-compatible endpoint (it answers with a page, not with JSON); "
                "check the address, which usually ends in /v1"
            )
        reply = _read(completion, self.url)
        self._last_answer = time.monotonic()
        self.meter.count(reply, self._last_answer - started)
        self.window.grow()
        return reply

    async def _explain_missing(self, error: openai.NotFoundError) -> FatalError:
        try:
            names = ", ".join(await self.served()) or "nothing"
        except (FatalError, TransientError):
            return FatalError(f"{self.url}: not an OpenAI-compatible endpoint (404); the address usually ends in /v1")
        return FatalError(f"{self.url}: does not serve {self.model!r}; it serves: {names}")

    def _is_unreached(self, state: RetryCallState) -> bool:
        return (
            not self.meter.calls and state.outcome is not None and isinstance(state.outcome.exception(), _Unreachable)
        )

    def _note_retry(self, state: RetryCallState) -> None:
        self.meter.retries += 1
        if _is_rate_limit(state):
            self.window.shrink()

    async def _pause(self, seconds: float) -> None:
        """Waits before a retry, but no longer once the work has failed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._failed.wait(), seconds)


class _Unreachable(TransientError):
    """Nothing listens at the address, or the connection broke."""


class _RateLimited(TransientError):
    """429. `retry_after` is in seconds, 0 where the endpoint did not say."""

    retry_after = 0.0


def _is_rate_limit(state: RetryCallState) -> bool:
    return state.outcome is not None and isinstance(state.outcome.exception(), _RateLimited)


_backoff = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S / 2)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), min(getattr(error, "retry_after", 0.0), LONGEST_WAIT_S))


def classify(
    error: openai.APIError, url: str, model: str, key: str | None = None
) -> TransientError | BadRowError | FatalError:
    """Which of the three kinds an error of the client is. Reads the reply, not the status alone: Gemini answers an
    invalid key with 400, and vLLM a context that is too long. A reply that repeats the key is shown without it."""
    if not isinstance(error, openai.APIStatusError):
        if isinstance(error, openai.APIConnectionError):
            reason = str(error.__cause__ or error)
            return _Unreachable(
                f"{url}: cannot be reached ({reason or type(error).__name__}); check the address and that it runs"
            )
        return TransientError(f"{url}: a reply that cannot be read ({error.message})")
    status, text = error.status_code, _one_line(error)
    if key and len(key) >= SHORTEST_KEY:
        text = text.replace(key, "***")
    lower = text.lower()
    if status in (401, 403) or (status == 400 and "api key" in lower):
        return FatalError(
            f"{url}: the key is refused ({status} {text}); set OPENAI_API_KEY for a judge or SERVE_API_KEY for vLLM"
        )
    if status == 402 or (status == 429 and re.search("insufficient_quota|per day|perday", lower)):
        return FatalError(f"{url}: the quota is used up ({text}); what was answered is kept; run again when it is back")
    if status == 429:
        limited = _RateLimited(f"{url}: too many requests (429 {text})")
        limited.retry_after = _retry_after(error.response)
        return limited
    if status in (408, 409) or status >= 500:
        return TransientError(f"{url}: {status} {text}")
    if status == 404:
        return FatalError(f"{url}: does not serve {model!r} (404 {text})")
    return BadRowError(f"{status} {text}")


def _read(completion: Any, url: str) -> Reply:
    """The reply in our own shape. A 200 without usable choices is a fault like a 500."""
    try:
        choices = [
            Choice(whole_characters(choice.message.content or ""), choice.finish_reason or "")
            for choice in completion.choices
        ]
    except (AttributeError, TypeError):
        choices = []
    if not choices:
        shown = " ".join(str(getattr(completion, "error", completion)).split())[:120]
        raise TransientError(f"{url}: a reply without choices ({shown})")
    usage = getattr(completion, "usage", None)
    return Reply(
        model=getattr(completion, "model", None) or "",
        choices=choices,
        prompt_tokens=getattr(usage, "prompt_tokens", 0) or 0,
        completion_tokens=getattr(usage, "completion_tokens", 0) or 0,
    )


def _retry_after(response: httpx2.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _one_line(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message", inner) if isinstance(inner, dict) else inner
        code = inner.get("code") if isinstance(inner, dict) else None
        body = f"{body} [{code}]" if isinstance(code, str) else body
    return " ".join(str(body or error.message).split())[:200]
