"""Completions for prompts: several samples each, every reply kept raw, and only the missing ones asked for.

A sample's key is its prompt's id and its index, and its seed follows from them: asking again asks for the same, and
more samples a prompt never repeat the first ones.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from nothing_gpt.config import SamplingSettings
from nothing_gpt.endpoint import Endpoint, Service
from nothing_gpt.errors import BadRowError, FatalError
from nothing_gpt.journal import Journal
from nothing_gpt.progress import progress
from nothing_gpt.records import CompletionSet, Prompt, digest
from nothing_gpt.store import Store

EXTRA_TRIES = 2
"""How often more samples are asked for where some came back empty, or too many alike."""


@dataclass(frozen=True)
class SetAside:
    """A prompt without usable completions. `degenerate`: answered, but with too few distinct ones."""

    prompt: Prompt
    reason: str
    degenerate: bool


class Sampling:
    """Samples of prompts by one adapter under one group of settings: `ask`, then `result` a prompt.

    A context manager. `count` completions a prompt are wanted, of which at least `distinct` differ.
    """

    def __init__(self, store: Store, settings: SamplingSettings, service: Service, count: int, distinct: int = 2):
        self._settings = settings
        self._service = service
        self._count = count
        self._distinct = distinct
        self._failures: dict[str, str] = {}
        self._journal = Journal(
            store,
            "sampling/"
            + digest(
                {
                    "answering": service.identity,
                    "temperature": settings.temperature,
                    "max_tokens": settings.max_tokens,
                    "frequency_penalty": settings.frequency_penalty,
                    "seed": settings.seed,
                }
            )[:16],
        )
        self.usage: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._journal.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.__exit__(*exception)

    def missing(self, prompt: Prompt) -> list[int]:
        """Indices of the samples to be asked for next; empty when the prompt is done.

        It is a function of the rows that are there, so that a run that was killed goes on to the same end.
        """
        return self._state(prompt)[0]

    def ask(self, prompts: Sequence[Prompt], label: str) -> None:
        """Asks for all that is missing; connects only if something is.

        Raises:
            FatalError: no request can be answered, or more than `max_failed_share` of the prompts could not be.
            TransientError: the endpoint stopped answering. What was answered is kept in all cases.
        """
        waiting = [prompt for prompt in prompts if self.missing(prompt)]
        if not waiting:
            return
        asyncio.run(self._ask(waiting, len(prompts), label))
        limit = self._settings.max_failed_share
        if len(self._failures) > limit * len(prompts):
            raise FatalError(
                f"{label}: {len(self._failures)} of {len(prompts)} prompts failed (sampling.max_failed_share "
                f"is {limit}); the first: {next(iter(self._failures.values()))}"
            )

    def result(self, prompt: Prompt) -> CompletionSet | SetAside:
        """The prompt's distinct completions, in the order of their samples."""
        missing, usable = self._state(prompt)
        if missing:
            return SetAside(prompt, self._failures.get(prompt.id, "not asked"), degenerate=False)
        distinct = dict(usable)
        if len(distinct) < self._distinct:
            return SetAside(prompt, f"{len(distinct)} distinct completions", degenerate=True)
        return CompletionSet(prompt, list(distinct), list(distinct.values()))

    async def _ask(self, waiting: Sequence[Prompt], total: int, label: str) -> None:
        endpoint = Endpoint(self._service, self._settings, "sampling")
        settings = self._settings
        jobs = [(prompt, min(_run_length(self.missing(prompt)), settings.concurrency)) for prompt in waiting]
        with progress(label, total, total - len(waiting)) as advance:
            async with endpoint:

                async def complete(job: tuple[Prompt, int]) -> None:
                    prompt, most = job
                    try:
                        while missing := self.missing(prompt):
                            first, count = missing[0], min(most, _run_length(missing))
                            seed = _seed(prompt, settings.seed) + first
                            reply = await endpoint.chat(
                                prompt.messages,
                                settings.max_tokens,
                                n=count,
                                temperature=settings.temperature,
                                frequency_penalty=settings.frequency_penalty,
                                seed=seed,
                            )
                            for index, choice in enumerate(reply.choices[:count], first):
                                self._journal.add(
                                    _key(prompt, index),
                                    {
                                        "text": choice.text,
                                        "finish_reason": choice.finish_reason,
                                        "model": reply.model,
                                        "seed": seed + index - first,
                                    },
                                )
                    except BadRowError as error:
                        self._failures[prompt.id] = str(error)
                    advance(note=f"{endpoint.meter.completion_tokens:,} tokens")

                await endpoint.each(jobs, lambda job: job[1], complete)
        self.usage = endpoint.meter.figures()

    def _state(self, prompt: Prompt) -> tuple[list[int], list[tuple[str, bool]]]:
        """What is missing, and if nothing is, the usable samples. Samples past those that this count wants are not
        seen: a run that asked for more leaves no trace in this one."""
        end, usable = self._count, list[tuple[str, bool]]()
        for tries_left in reversed(range(EXTRA_TRIES + 1)):
            missing = [index for index in range(end) if _key(prompt, index) not in self._journal]
            if missing:
                return missing, []
            usable = self._usable(prompt, end)
            distinct = len(dict(usable))
            short = self._count - (len(usable) if distinct >= self._distinct else distinct)
            if short <= 0 or not tries_left:
                break
            end += short
        return [], usable

    def _usable(self, prompt: Prompt, end: int) -> list[tuple[str, bool]]:
        """(text, was it cut) of those of the prompt's first `end` samples that hold text."""
        usable: list[tuple[str, bool]] = []
        for index in range(end):
            row = self._journal[_key(prompt, index)]
            cut = row["finish_reason"] == "length"
            text = whole_lines(row["text"]) if cut else row["text"].strip()
            if text:
                usable.append((text, cut))
        return usable


def whole_lines(text: str) -> str:
    """The text without its unfinished last line: what remains of a completion that the token limit cut."""
    return text.rpartition("\n")[0].strip()


def _key(prompt: Prompt, index: int) -> str:
    return f"{prompt.id}/{index}"


def _seed(prompt: Prompt, seed: int) -> int:
    """Seed of the prompt's first sample, 31 bits. vLLM counts it up over a request's samples, and so do we."""
    return int(hashlib.sha256(f"{seed}:{prompt.id}".encode()).hexdigest()[:8], 16) % (2**31 - 4096)


def _run_length(indices: Sequence[int]) -> int:
    """How many of the indices follow each other without a gap from the first on."""
    return next((n for n in range(1, len(indices)) if indices[n] != indices[0] + n), len(indices))
