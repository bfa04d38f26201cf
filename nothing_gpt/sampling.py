"""Completions for prompts: several samples each, every reply kept raw, and only the missing ones asked for.

A reply's key is its prompt's id and the index of its first sample, and its seed follows from them: asking again asks
for the same, and more samples a prompt never repeat the first ones. What a reply is worth is decided when it is read.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Self

from nothing_gpt.config import SamplingSettings
from nothing_gpt.endpoint import Endpoint, Service
from nothing_gpt.errors import BadRowError
from nothing_gpt.failures import Failures
from nothing_gpt.journal import Journal
from nothing_gpt.progress import progress
from nothing_gpt.records import CompletionSet, Prompt, Rows, digest
from nothing_gpt.replies import CUT, WITHHELD, Meter, Reply
from nothing_gpt.shards import Shard, Spread, ask_elsewhere, one_model
from nothing_gpt.stopping import run
from nothing_gpt.store import Store

EXTRA_TRIES = 2
"""How often more samples are asked for where some came back empty, or too many alike."""

_LINE = re.compile(r"\s*\[[^\[\]]+\]\s*\S")
_REFUSES_N = re.compile(r"\bn\b|candidates|completion choice|number of (choices|completions)", re.IGNORECASE)
"""How endpoints that give one choice a request say so: OpenAI's form, Gemini's, llama.cpp's."""


@dataclass(frozen=True)
class SetAside:
    """A prompt without usable completions. `degenerate`: answered, but with too few distinct ones. `status` is the
    last refusal's HTTP status; `attempts` is how often the prompt was asked for."""

    prompt: Prompt
    reason: str
    degenerate: bool
    status: int | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class _Samples:
    """What a prompt has: the replies, the indices of the samples to be asked for next, and if there are none, the
    usable texts with whether the token limit cut them, and how many texts the provider withheld."""

    replies: list[Any]
    missing: range
    usable: list[tuple[str, bool]]
    withheld: int = 0


class Sampling:
    """Samples of prompts by one adapter under one group of settings: `ask`, then `result` a prompt.

    A context manager. `count` completions a prompt are wanted, of which at least `distinct` differ. `shard`: only the
    prompts of that shard are asked for here, by one of several workers.
    """

    def __init__(
        self,
        store: Store,
        settings: SamplingSettings,
        service: Service,
        count: int,
        distinct: int = 2,
        again: str = "",
        shard: Shard | None = None,
    ):
        self._settings = settings
        self._shard = shard
        self._service = service
        self._count = count
        self._distinct = distinct
        self._one_by_one = False
        self._failures: Failures | None = None
        asked = settings.model_dump(include={"temperature", "max_tokens", "frequency_penalty", "seed"})
        asked |= {"answering": service.identity, "rows": "replies"} | ({"again": again} if again else {})
        partition = digest(asked)[:16]
        self._journal = Journal(store, f"sampling/{partition}", shard.number if shard else None)
        self._meter = Meter(settings.prices.get(service.model))
        self._answered_by: str | None = None

    @property
    def usage(self) -> dict[str, Any]:
        """What all replies cost, those kept from before included."""
        return self._meter.figures()

    @property
    def costs(self) -> dict[str, Meter]:
        """The same as a shard tells it, by model."""
        return {self._service.model: self._meter}

    def __enter__(self) -> Self:
        self._journal.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.__exit__(*exception)

    def missing(self, prompt: Prompt) -> range:
        """Indices of the samples to be asked for next; empty when the prompt is done.

        It is a function of the rows that are there, so that a run that was killed goes on to the same end.
        """
        return self._samples(prompt.id).missing

    def ask(self, prompts: Sequence[Prompt], label: str, spread: Spread | None = None) -> None:
        """Asks for all that is missing; connects only if something is. Called again, for other prompts. Where there
        are several shards they are spread first.

        Raises:
            FatalError: no request can be answered, or more than `max_failed_share` of the prompts could not be.
            TransientError: the endpoint stopped answering. What was answered is kept in all cases.
        """
        settings = self._settings
        total = self._shard.total if self._shard else len(prompts)
        failures = Failures(label, "sampling.max_failed_share", settings.max_failed_share, total)
        self._failures = failures
        with self._journal.alone():
            meter = self._meter
            elsewhere = ask_elsewhere(spread, _ids(prompts), len(prompts), lambda i: bool(self._samples(i).missing))
            if elsewhere:
                self._journal.refresh()
            waiting, names = bytearray(len(prompts)), set[str]()
            for number, prompt in enumerate(_ids(prompts)):
                samples = self._samples(prompt)
                waiting[number] = len(samples.missing) > 0
                for row in samples.replies:
                    meter.recall(Reply(row["model"], [], *row["tokens"]))
                    if row.get("asked") == self._service.model and row["model"]:  # else it answers as another
                        names.add(row["model"])
            self._answered_by = one_model(self._service.model, names, "sampling") or self._answered_by
            for costs in elsewhere:
                meter.include(costs[self._service.model])
            if any(waiting):
                endpoint = Endpoint(self._service, settings, "sampling", self._answered_by, meter)
                with progress(label, len(prompts), len(prompts) - sum(waiting)) as advance:

                    def done() -> None:
                        advance(note=f"{meter.completion_tokens:,} tokens")

                    run(self._ask(endpoint, compress(prompts, waiting), failures, done))

    def result(self, prompt: Prompt) -> CompletionSet | SetAside:
        """The prompt's distinct completions, in the order of their samples."""
        samples = self._samples(prompt.id)
        if samples.missing:
            failure = self._failures.get(prompt.id) if self._failures else None
            if failure is None:
                return SetAside(prompt, "not asked", degenerate=False)
            return SetAside(prompt, failure.reason, False, failure.status, failure.attempts)
        distinct: dict[str, bool] = {}
        for text, cut in samples.usable:
            distinct[text] = cut and distinct.get(text, True)
        if len(distinct) < self._distinct:
            withheld = f", {samples.withheld} withheld by the provider's filter" if samples.withheld else ""
            reason = f"{len(distinct)} distinct completions{withheld}"
            return SetAside(prompt, reason, degenerate=True, attempts=len(samples.replies))
        return CompletionSet(prompt, list(distinct), list(distinct.values()))

    async def _ask(self, endpoint: Endpoint, prompts: Iterable[Prompt], failures: Failures, done: Any) -> None:
        async with endpoint:

            async def complete(job: tuple[Prompt, int]) -> None:
                prompt, most = job
                try:
                    while missing := self.missing(prompt):
                        count = 1 if self._one_by_one else min(most, len(missing))
                        reply, count = await self._request(endpoint, prompt, missing[0], count)
                        most = 1 if len(reply.choices) < count else most
                except BadRowError as error:
                    failures.add(prompt.id, error)
                done()

            jobs = ((prompt, self._most(prompt)) for prompt in prompts)
            await endpoint.each(jobs, lambda job: job[1], complete)

    def _most(self, prompt: Prompt) -> int:
        """Samples that are asked for in one request: no more than may be in flight at once."""
        return 1 if self._one_by_one else min(len(self.missing(prompt)), self._settings.concurrency)

    async def _request(self, endpoint: Endpoint, prompt: Prompt, first: int, count: int) -> tuple[Reply, int]:
        """Asks for samples from index `first` on and keeps the reply; returns it and how many were asked for. Raises
        what `Endpoint.chat` does."""
        settings = self._settings
        seed = _seed(prompt, settings.seed) + first

        async def chat(n: int) -> Reply:
            return await endpoint.chat(
                prompt.messages,
                settings.max_tokens,
                n=n,
                temperature=settings.temperature,
                frequency_penalty=settings.frequency_penalty,
                seed=seed,
            )

        try:
            reply = await chat(count)
        except BadRowError as error:
            if count == 1 or error.status not in (400, 422) or not _REFUSES_N.search(str(error)):
                raise
            reply, count = await chat(1), 1
            self._one_by_one = True
        if len(reply.choices) == 1 < count:
            self._one_by_one = True
        asked = {"asked": self._service.model, "n": count, "seed": seed}
        self._journal.add(_key(prompt.id, first), reply.row() | asked)
        self._answered_by = reply.model or self._answered_by
        return reply, count

    def _samples(self, prompt: str) -> _Samples:
        """Samples past those that this count wants are not seen: a run that asked for more leaves no trace here."""
        replies: list[Any] = []
        choices: list[list[str]] = []
        usable: list[tuple[str, bool]] = []
        end = self._count
        for tries_left in reversed(range(EXTRA_TRIES + 1)):
            while len(choices) < end and (row := self._journal.get(_key(prompt, len(choices)))):
                replies.append(row)
                choices += row["choices"][: row["n"]]
            if len(choices) < end:
                return _Samples(replies, range(len(choices), end), [])
            usable = [sample for choice in choices[:end] if (sample := self._read(*choice))[0]]
            distinct = len(dict(usable))
            short = self._count - (len(usable) if distinct >= self._distinct else distinct)
            if short <= 0 or not tries_left:
                break
            end += short
        withheld = sum(finish_reason == WITHHELD for _, finish_reason in choices[:end])
        return _Samples(replies, range(0), usable, withheld)

    def _read(self, text: str, finish_reason: str) -> tuple[str, bool]:
        """(usable text of a choice, did the token limit cut it); an empty text where there is none."""
        cut = finish_reason == CUT
        if finish_reason == WITHHELD:
            return "", cut
        text = whole_lines(text) if cut else text.strip()
        return spoken_lines(text) if self._settings.line_filter else text, cut


def _ids(prompts: Sequence[Prompt]) -> Iterator[str]:
    return prompts.ids() if isinstance(prompts, Rows) else (prompt.id for prompt in prompts)


def whole_lines(text: str) -> str:
    """The text without its unfinished last line: what remains of a completion that the token limit cut."""
    return text.rpartition("\n")[0].strip()


def spoken_lines(text: str) -> str:
    """The text's lines of the form `[CHARACTER] text`, without the others."""
    return "\n".join(line.strip() for line in text.split("\n") if _LINE.match(line))


def _key(prompt: str, index: int) -> str:
    return f"{prompt}/{index}"


def _seed(prompt: Prompt, seed: int) -> int:
    """Seed of the prompt's first sample, 31 bits. vLLM counts it up over a request's samples, and so do we."""
    return int(hashlib.sha256(f"{seed}:{prompt.id}".encode()).hexdigest()[:8], 16) % (2**31 - 4096)
