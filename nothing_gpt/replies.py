"""What an endpoint answers: a reply in our own shape, or an error as one of the three kinds; and what replies cost.

Reads OpenAI's chat format as vLLM, Gemini, OpenAI and others write it. Sends nothing: that is `endpoint.py`.
"""

import json
import math
import re
import statistics
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import openai

from nothing_gpt.config import Price
from nothing_gpt.errors import BadRowError, FatalError, TransientError
from nothing_gpt.records import Message, whole_characters

CUT = "length"
"""The finish reason of a completion that the token limit cut."""
WITHHELD = "content_filter"
"""The finish reason of a completion that the provider's filter took back."""
SHORTEST_KEY = 6
"""Anything shorter is a placeholder, such as the "none" that keyless servers are sent."""

MESSAGE_TOKENS = 16
"""The most that a chat template adds to a message."""

_KEY_REFUSED = re.compile(r"api[ _]key[ _](not[ _]valid|invalid|expired|missing|not[ _]found)|invalid[ _]api[ _]key")
_QUOTA = re.compile(r"insufficient_quota|per[ _]?day")
_NO_SUCH_MODEL = re.compile(r"model_not_found|(invalid|unknown) model|model .{1,80} (does not exist|is not found)")


class UnreachableError(TransientError):
    """Nothing listens at the address, or the connection broke."""


class RateLimitError(TransientError):
    """One request too many (429), or an endpoint that names the time to come back."""

    def __init__(self, message: str, retry_after: float = 0.0):
        """`retry_after` is in seconds, 0 where the endpoint did not say."""
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Choice:
    """One completion of a reply."""

    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """An endpoint's answer to one request. Tokens count all its choices together."""

    model: str
    choices: list[Choice]
    prompt_tokens: int
    completion_tokens: int

    def row(self) -> dict[str, Any]:
        """The reply as the journal keeps it; `of` reads it back."""
        return {
            "model": self.model,
            "choices": [[choice.text, choice.finish_reason] for choice in self.choices],
            "tokens": [self.prompt_tokens, self.completion_tokens],
        }

    @classmethod
    def of(cls, row: Any) -> "Reply":
        choices = [Choice(text, finish_reason) for text, finish_reason in row["choices"]]
        return cls(row["model"], choices, *row["tokens"])


@dataclass
class Meter:
    """What the rows of a stage cost: those that were answered now, and those that were kept from before."""

    price: Price | None = None
    others_usd: float = 0.0
    """Spent elsewhere under the same limit."""
    calls: int = 0
    kept: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: "array[float]" = field(default_factory=lambda: array("f"))

    @property
    def cost_usd(self) -> float | None:
        """What was spent, or None where the model's price is not known."""
        return None if self.price is None else self._cost(self.prompt_tokens, self.completion_tokens)

    def most(self, messages: Sequence[Message], tokens: int) -> float:
        """The most that a request for so many tokens can cost (USD): a token is at least a byte of text."""
        if self.price is None:
            return 0.0
        return self._cost(sum(len(message["content"].encode()) + MESSAGE_TOKENS for message in messages), tokens)

    def count(self, reply: Reply, seconds: float) -> None:
        """Counts a reply that came now, `seconds` after it was asked for."""
        self.calls += 1
        self.seconds.append(seconds)
        self._add(reply)

    def recall(self, reply: Reply) -> None:
        """Counts a reply of an earlier run: it is paid for too."""
        self.kept += 1
        self._add(reply)

    def include(self, shard: "Meter") -> None:
        """Counts what a shard asked for now: its replies, found in the journal, were not kept from before. Of a row
        that two shards asked for one reply is found there."""
        self.calls += shard.calls
        self.kept = max(0, self.kept - shard.calls)
        self.retries += shard.retries
        self.seconds.extend(shard.seconds)

    def figures(self) -> dict[str, Any]:
        """The counts, for a manifest. Latencies in seconds; tokens and cost include the replies kept from before."""
        cuts = statistics.quantiles(self.seconds, n=100, method="inclusive") if len(self.seconds) > 1 else []
        percentiles = {f"latency_p{p}_s": round(cuts[p - 1], 3) if cuts else None for p in (50, 95, 99)}
        return {
            "calls": self.calls,
            "kept": self.kept,
            "retries": self.retries,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": self.cost_usd,
            **percentiles,
        }

    def _add(self, reply: Reply) -> None:
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

    def _cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        assert self.price is not None
        return (prompt_tokens * self.price.input + completion_tokens * self.price.output) / 1e6


def read_reply(body: bytes, url: str, key: str | None = None) -> Reply:
    """The reply in a 200's body. An error shows what the body says, without the key.

    Raises:
        TransientError: no JSON, or nothing usable in it, which is a fault like a 500.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise TransientError(f"{url}: a reply that is not JSON ({_shown(body, key)})") from None
    try:
        choices = [
            Choice(whole_characters(_text(choice["message"].get("content"))), choice.get("finish_reason") or "")
            for choice in value["choices"]
        ]
        usage = value.get("usage") or {}
        prompt, completion = (max(0, int(usage.get(f"{kind}_tokens") or 0)) for kind in ("prompt", "completion"))
        model = value.get("model") or ""
        if not isinstance(model, str) or not all(isinstance(choice.finish_reason, str) for choice in choices):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        choices, model, prompt, completion = [], "", 0, 0
    if not choices:
        raise TransientError(f"{url}: a reply without choices ({_shown(body, key)})")
    return Reply(model, choices, prompt, completion)


def classify(
    error: openai.APIError, url: str, model: str, key: str | None = None
) -> TransientError | BadRowError | FatalError:
    """Which of the three kinds an error of the client is. Reads the reply, not the status alone: Gemini answers an
    invalid key with 400, and vLLM a context that is too long. A reply that repeats the key is shown without it."""
    if isinstance(error, openai.APITimeoutError) and not isinstance(error.__cause__, httpx2.ConnectTimeout):
        return TransientError(f"{url}: no answer in time")
    if isinstance(error, openai.APIConnectionError):
        reason = str(error.__cause__ or error) or type(error.__cause__ or error).__name__
        return UnreachableError(f"{url}: cannot be reached ({reason}); check the address and that it runs")
    if not isinstance(error, openai.APIStatusError):
        return TransientError(f"{url}: a reply that cannot be read ({error.message})")
    status, text, whole = error.status_code, _message(error, key), str(error.body or error.message).lower()
    if status in (401, 403) or (status == 400 and _KEY_REFUSED.search(whole)):
        return FatalError(
            f"{url}: the key is refused ({status} {text}); set OPENAI_API_KEY for a judge or SERVE_API_KEY for vLLM"
        )
    if status == 402 or (status == 429 and _QUOTA.search(whole)):
        return FatalError(f"{url}: the quota is used up ({text}); what was answered is kept; run again when it is back")
    if status == 429 or (status == 503 and "retry-after" in error.response.headers):
        return RateLimitError(f"{url}: too many requests ({status} {text})", _retry_after(error))
    if status in (408, 409) or status >= 500:
        return TransientError(f"{url}: {status} {text}")
    if status == 404 or (status in (400, 422) and _NO_SUCH_MODEL.search(whole)):
        return FatalError(f"{url}: does not serve {model!r} ({status} {text})")
    return BadRowError(f"{status} {text}", status)


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds to wait: the header's number or date (RFC 9110, 10.2.3), or Gemini's `"retryDelay": "17s"` in the body;
    0 where there is none that makes sense."""
    header = error.response.headers.get("retry-after", "")
    delay = re.search(r"retryDelay\W+([\d.]+)s", str(error.body))
    seconds = 0.0
    with suppress(ValueError, TypeError, OverflowError):
        if header.strip().endswith(("GMT", "+0000")):
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        else:
            seconds = float(header or (delay[1] if delay else 0))
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def hidden(text: str, key: str | None) -> str:
    """The text without the key, which some servers repeat. To be called before anything is cut off it."""
    return text.replace(key, "***") if key and len(key) >= SHORTEST_KEY else text


def _text(content: Any) -> str:
    """A message's text, which may come in parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def _message(error: openai.APIStatusError, key: str | None) -> str:
    """The error's own words, on one line."""
    body = error.body
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message", inner) if isinstance(inner, dict) else inner
        code = inner.get("code") if isinstance(inner, dict) else None
        body = f"{body} [{code}]" if isinstance(code, str) else body
    return " ".join(hidden(str(body or error.message), key).split())[:200]


def _shown(body: bytes, key: str | None) -> str:
    return " ".join(hidden(body.decode(errors="replace"), key).split())[:120]
