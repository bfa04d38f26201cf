"""The offline judge's fixed rules: well-formed turns, each in its speaker's own voice, nothing repeated.

They also ask that the turns change hands and stay with the scene's thing. Pure functions of text, so the same
completions always get the same verdict. Wit is not measured.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from nothing_gpt.embedded.scripts import THINGS, voice_of, words_of

TURN = re.compile(r"\[([A-Z][A-Z' ]*)\] (\S.*)")
"""A turn of any show's script; only our own four have a voice to be judged."""

WEIGHTS = {"form": 0.15, "voice": 0.6, "fresh": 0.1, "scene": 0.15}
"""What each rule is worth. Voice leads: it is what the first draft gets wrong."""

TIE = 0.1
"""Completions whose scores differ by less are a tie: so little says more about luck than about the writer."""

LINES_EXPECTED = 3
"""Fewer turns than this lose form: a single safe line is no answer to a scene."""


@dataclass(frozen=True)
class Marks:
    """What each rule gives a completion, 0 to 1, with the counts its reason quotes."""

    form: float
    voice: float
    fresh: float
    scene: float
    in_voice: int
    turns: int

    @property
    def score(self) -> float:
        return round(sum(weight * getattr(self, rule) for rule, weight in WEIGHTS.items()), 4)


def mark(context: str, completion: str) -> Marks:
    """Applies every rule to `completion`, which continues `context` (turns, one a line)."""
    lines = [line.strip() for line in completion.splitlines() if line.strip()]
    turns = [(match[1], match[2]) for match in map(TURN.fullmatch, lines) if match]
    if not turns:
        return Marks(form=0.0, voice=0.0, fresh=0.0, scene=0.0, in_voice=0, turns=0)
    in_voice = sum(voice_of(dialogue) == speaker for speaker, dialogue in turns)
    earlier = {dialogue for _, dialogue in TURN.findall(context)}
    fresh = {dialogue for _, dialogue in turns} - earlier
    return Marks(
        form=len(turns) / max(len(lines), LINES_EXPECTED),
        voice=in_voice / len(turns),
        fresh=len(fresh) / len(turns),
        scene=_answers(context, turns),
        in_voice=in_voice,
        turns=len(turns),
    )


def score(context: str, completion: str) -> float:
    """How well `completion` continues `context`: 0 (not a script at all) to 1 (every rule kept)."""
    return mark(context, completion).score


def rank(context: str, completions: list[str]) -> tuple[int, int, bool, str]:
    """The best and the worst of `completions` (numbered from 1), whether they tie, and the reason."""
    marks = [mark(context, completion) for completion in completions]
    numbers = range(len(marks))
    best = max(numbers, key=lambda number: marks[number].score)
    worst = min(numbers, key=lambda number: marks[number].score)
    tie = marks[best].score - marks[worst].score < TIE
    reason = f"{_describe(best, marks[best])}; {_describe(worst, marks[worst])}"
    return best + 1, worst + 1, tie, reason + ("; too close to call" if tie else "")


def _describe(number: int, marks: Marks) -> str:
    return f"{number + 1} scores {marks.score:.2f} with {marks.in_voice} of {marks.turns} turns in voice"


def _answers(context: str, turns: list[tuple[str, str]]) -> float:
    """Half for staying with the scene's thing, half for turns that change hands.

    A scene about no known thing gives the first half to anyone.
    """
    spoken = set(words_of(context))
    things = {thing for thing in THINGS if thing in spoken}
    named = {thing for _, dialogue in turns for thing in THINGS if thing in words_of(dialogue)}
    on_topic = not things or (bool(named) and named <= things)
    speakers = [speaker for speaker, _ in TURN.findall(context)[-1:] + turns]
    handovers = sum(before != after for before, after in pairwise(speakers))
    return 0.5 * on_topic + 0.5 * handovers / max(len(speakers) - 1, 1)
