"""One service at several addresses: where each request goes, and who is left out for a while.

A request goes to the replica with the fewest in flight. One that fails `EJECT_AFTER` times in succession, refuses, or
names the time to come back is left out, and tried with one request now and then until it answers. After any failure it
is looked at first, for it may have begun anew with other weights. Where there is only one address it is never left out.
What an answer means is decided in `replies.py`, and what is asked again in `endpoint.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import openai

from nothing_gpt.errors import BadRowError, FatalError, TransientError
from nothing_gpt.progress import say
from nothing_gpt.replies import RateLimitError, classify

EJECT_AFTER = 5
"""Failures in succession after which a replica is left out, as in Envoy's outlier detection."""
FIRST_OUT_S = 1.0
"""Seconds that it is left out for; twice as long after each trial that fails, up to `LONGEST_OUT_S`."""
LONGEST_OUT_S = 10.0
LOOK_S = 30.0
"""Seconds after which a list of models is given up."""


def addresses(text: str) -> list[str]:
    """The addresses of a comma-separated list, each once; `[""]` where there is none."""
    return [*dict.fromkeys(url.strip() for url in text.split(",") if url.strip())] or [""]


@dataclass(eq=False)
class Replica:
    """One address of a service, and how it fared lately."""

    url: str
    model: str
    client: openai.AsyncOpenAI
    key: str
    in_flight: int = 0
    failures: int = 0
    """In succession."""
    trials: int = 0
    """Since it is left out."""
    back_at: float = 0.0
    out: TransientError | FatalError | None = None
    """Why it is left out."""
    doubted: bool = False
    """It failed since it was looked at."""

    async def served(self) -> dict[str, str | None]:
        """Names of the models that it serves, each with its `root`, vLLM's path of its weights, where that is told.

        Raises:
            FatalError: this is no OpenAI-compatible endpoint. TransientError: it does not answer.
        """
        try:
            models = self.client.models.list(timeout=LOOK_S)
            return {model.id: (model.model_extra or {}).get("root") async for model in models}
        except openai.APIError as error:
            raise classify(error, self.url, self.model, self.key) from None
        except (AttributeError, TypeError, ValueError):
            raise FatalError(
                f"{self.url}: not an OpenAI-compatible endpoint (its /models is not a list of models); "
                "check the address, which usually ends in /v1"
            ) from None

    async def is_there(self) -> bool:
        """Whether it answers at all, if not this or that request."""
        try:
            await self.served()
        except TransientError:
            return False
        except FatalError:  # an answer all the same
            return True
        return True

    async def explain_missing(self) -> FatalError:
        """What a 404 means."""
        try:
            names = ", ".join(await self.served()) or "nothing"
        except (FatalError, TransientError):
            return FatalError(f"{self.url}: not an OpenAI-compatible endpoint (404); the address usually ends in /v1")
        return FatalError(f"{self.url}: does not serve {self.model!r}; it serves: {names}")


class Replicas:
    """The replicas of one service. They are to serve one model from the same weights."""

    def __init__(self, replicas: Sequence[Replica], clock: Callable[[], float] = time.monotonic):
        """`clock` tells seconds."""
        self._all = replicas
        self._clock = clock
        self._source: tuple[Replica, str] | None = None

    @property
    def left(self) -> int:
        """How many are not left out, and at least 1."""
        return max(1, sum(replica.out is None for replica in self._all))

    async def check(self) -> None:
        """Looks, before anything is asked, whether all that answer serve the same; leaves out those that do not answer.

        Raises:
            FatalError: one serves the model from other weights than the others, or is no endpoint.
        """
        for replica in self._all if len(self._all) > 1 else ():
            if error := await self._look(replica):
                self._leave_out(replica, error)

    async def served(self) -> list[str]:
        """Names of the models that the first one serves. Raises as `Replica.served`."""
        return [*await self._all[0].served()]

    async def is_there(self) -> bool:
        """Whether any of them answers at all."""
        return any(await asyncio.gather(*(replica.is_there() for replica in self._all)))

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Replica]:
        """The replica that a request goes to. How the request ends decides how the replica is used.

        Raises:
            TransientError: all are left out, or one that others can stand in for refuses, or names the time to come
                back. FatalError: all refuse. What else the request raises.
        """
        replica = self._least_loaded()
        replica.in_flight += 1
        try:
            replica.trials += replica.out is not None
            if replica.doubted and len(self._all) > 1 and (error := await self._look(replica)):
                raise error
            yield replica
        except BadRowError:  # an answer all the same
            self._answered(replica)
            raise
        except RateLimitError as error:
            if not error.retry_after or all(other.out for other in self._others(replica)):
                self._answered(replica)
                raise
            self._leave_out(replica, error)
            raise TransientError(str(error)) from None  # the others need not wait
        except TransientError as error:
            replica.failures += 1
            replica.doubted = True
            if replica.out or (len(self._all) > 1 and replica.failures >= EJECT_AFTER):
                self._leave_out(replica, error)
            raise
        except FatalError as error:
            if all(isinstance(other.out, FatalError) for other in self._others(replica)):
                raise
            self._leave_out(replica, error)
            raise TransientError(str(error)) from None
        else:
            self._answered(replica)
        finally:
            replica.in_flight -= 1

    def _others(self, replica: Replica) -> list[Replica]:
        return [other for other in self._all if other is not replica]

    def _least_loaded(self) -> Replica:
        now = self._clock()
        # One that is left out comes back with a single request, and with all only when that is answered.
        usable = [one for one in self._all if not one.out or (not one.in_flight and one.back_at <= now)]
        if not usable:
            out = min(self._all, key=lambda one: one.back_at).out
            assert out
            raise TransientError(str(out)) if isinstance(out, FatalError) else out.with_traceback(None)
        return min(usable, key=lambda one: one.in_flight)

    async def _look(self, replica: Replica) -> TransientError | None:
        """Whether it serves what the others do; the error where it does not answer. Raises FatalError as `check`."""
        try:
            served = await replica.served()
        except TransientError as error:
            return error
        # Some providers list a model under another name; who answers is then told by the answers alone.
        source = f"from {served[replica.model] or 'a place it does not tell'}" if replica.model in served else "not"
        first, known = self._source = self._source or (replica, source)
        if source != known:
            raise FatalError(
                f"{replica.url}: {replica.model!r} is served {source}, but at {first.url} it is served {known}; all "
                "replicas must serve the same weights: load them there, or take the address out of the list"
            )
        replica.doubted = False
        return None

    def _answered(self, replica: Replica) -> None:
        if replica.out:
            say(f"{replica.url}: back")
        replica.failures, replica.trials, replica.out = 0, 0, None

    def _leave_out(self, replica: Replica, error: TransientError | FatalError) -> None:
        if not replica.out:
            say(f"{replica.url}: left out until it answers ({error})")
        replica.out, replica.doubted = error, True
        seconds = min(FIRST_OUT_S * 2 ** min(replica.trials, 10), LONGEST_OUT_S)  # no power too large for a float
        replica.back_at = self._clock() + max(seconds, error.retry_after if isinstance(error, RateLimitError) else 0)
