"""How an adapter's answers look, whatever they say: their length, their form, and how often they repeat themselves.

What a judge may overlook in one answer, or even like, shows over many of them.
"""

import re
from collections.abc import Sequence
from typing import TypedDict

NGRAM = 4
_SPOKEN = re.compile(r"\s*\[[^\[\]\n]+\]\s*\S")


class Behaviour(TypedDict):
    """Figures on the answers of one adapter; empty answers are left out."""

    answers: int
    length: float
    """Mean length (characters)."""
    in_form: float
    """Share (0 to 1) of the lines that have the form `[CHARACTER] text`."""
    repetition: float
    """Share (0 to 1) of the 4-grams of words that stood in the same answer before: 1 minus distinct-4 (Li et al. 2016,
    arXiv 1510.03055), counted within each answer."""


def behaviour(answers: Sequence[str]) -> Behaviour:
    """The figures on these answers; all 0 where there is none."""
    texts = [text for text in answers if text.strip()]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    repeated = total = 0
    for text in texts:
        words = text.split()
        ngrams = list(zip(*(words[start:] for start in range(NGRAM)), strict=False))
        total += len(ngrams)
        repeated += len(ngrams) - len(set(ngrams))
    return Behaviour(
        answers=len(texts),
        length=_share(sum(map(len, texts)), len(texts)),
        in_form=_share(sum(bool(_SPOKEN.match(line)) for line in lines), len(lines)),
        repetition=_share(repeated, total),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
