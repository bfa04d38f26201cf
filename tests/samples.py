"""Small made-up rows for the tests."""

from collections.abc import Sequence

from nothing_gpt.records import CompletionSet, Prompt
from nothing_gpt.verdicts import Verdict


def prompt(text: str = "hello") -> Prompt:
    return Prompt.of([{"role": "system", "content": "Continue the scene."}, {"role": "user", "content": text}])


def prompts(count: int) -> list[Prompt]:
    return [prompt(f"scene {number}") for number in range(count)]


def completion_set(text: str = "hello", completions: Sequence[str] = ("one", "two", "three")) -> CompletionSet:
    return CompletionSet(prompt(text), list(completions), [False] * len(completions))


def verdict(best: int, worst: int, tie: bool = False, order: tuple[int, ...] = (0, 1, 2)) -> Verdict:
    return Verdict(order, best, worst, tie, "because", "judge")
