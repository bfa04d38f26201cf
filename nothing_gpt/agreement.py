"""Agreement of the judge with people: hand labels are read, matched to judged sets by their texts, and compared by
Cohen's kappa. Nothing here changes a pair.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from nothing_gpt.errors import FatalError
from nothing_gpt.intervals import wilson
from nothing_gpt.preferences import JudgedSet
from nothing_gpt.records import checked_completions, checked_messages, digest, read_jsonl
from nothing_gpt.verdicts import Ranking, consensus

Labels = Mapping[str, "Label"]
"""Labels by the key of the set they are on."""


@dataclass(frozen=True, slots=True)
class Label:
    """The best and the worst of one set's completions, as texts, as a person sees them."""

    best: str
    worst: str


class People(TypedDict):
    """The judge's agreement with people. `_ci` is a 95 % interval [low, high]; None where there is nothing to tell."""

    labels: int
    matched: int
    """Labels whose prompt and completions are those of a judged set."""
    ranked: int
    """Matched sets whose votes agree on a best and a worst: kappa is of these, since the others make no pairs."""
    kappa_best: float | None
    kappa_best_ci: list[float] | None
    kappa_worst: float | None
    kappa_worst_ci: list[float] | None


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with its 95 % interval, and the units it rests on."""

    value: float
    low: float
    high: float
    n: int


def cohens_kappa(ratings: Sequence[tuple[Hashable, Hashable]]) -> Kappa | None:
    """Agreement of two raters beyond chance, (p_o - p_e) / (1 - p_e) (Cohen 1960, "A coefficient of agreement for
    nominal scales"); 1 is full agreement, 0 is chance. None where both always say the same one thing, or nothing.

    The interval is Wilson's for p_o, put through the formula with p_e taken as known, as in Cohen's own standard
    error; unlike that it does not shrink to nothing where the raters agree on everything.
    """
    n = len(ratings)
    left, right = (Counter(rating[rater] for rating in ratings) for rater in (0, 1))
    expected = sum(count * right[category] for category, count in left.items())
    if n == 0 or expected == n * n:
        return None
    chance = expected / n**2
    observed = wilson(sum(a == b for a, b in ratings), n)
    value, low, high = ((share - chance) / (1 - chance) for share in observed[:3])
    return Kappa(value, max(low, -1.0), high, n)


def read_labels(path: Path) -> dict[str, Label]:
    """The labels of a JSON-lines file of `{prompt, completions, best, worst}`; best and worst count from 0.

    Raises:
        FatalError: missing or empty file, a line that is no label, or a set that is labelled twice.
    """
    labels: dict[str, Label] = {}
    for number, row in read_jsonl(path):
        where = f"{path}, line {number}"
        prompt = checked_messages(row, "prompt", where)
        texts, _ = checked_completions(row, where)
        if len(texts) < 2:
            raise FatalError(f'{where}: no "completions"; expected a list of two texts or more')
        best, worst = row.get("best"), row.get("worst")
        places = range(len(texts))
        if type(best) is not int or type(worst) is not int or not (best in places and worst in places):
            raise FatalError(f'{where}: "best" and "worst" must be whole numbers from 0 to {len(texts) - 1}')
        if texts[best] == texts[worst]:
            raise FatalError(f'{where}: "best" and "worst" name the same text; name two, or take the line out')
        key = _key(digest(prompt), texts)
        if key in labels:
            raise FatalError(f"{where}: this set is labelled further up already; keep one of the two")
        labels[key] = Label(texts[best], texts[worst])
    if not labels:
        raise FatalError(f'{path}: holds no labels; each line must be {{"prompt", "completions", "best", "worst"}}')
    return labels


def agreement_with_people(judged: Iterable[JudgedSet], labels: Labels) -> People:
    """How far the judge's rankings are those of people. The categories are the completions' places in their set, which
    sampling filled at random."""
    matched = 0
    best: list[tuple[Any, Any]] = []
    worst: list[tuple[Any, Any]] = []
    for item in judged:
        texts = item.item.completions
        label = labels.get(_key(item.item.prompt.id, texts))
        if label is None:
            continue
        matched += 1
        ranking = consensus(item.votes)
        if isinstance(ranking, Ranking):
            best.append((texts.index(label.best), ranking.best))
            worst.append((texts.index(label.worst), ranking.worst))
    on_best, on_worst = cohens_kappa(best), cohens_kappa(worst)
    return People(
        labels=len(labels),
        matched=matched,
        ranked=len(best),
        kappa_best=on_best and on_best.value,
        kappa_best_ci=on_best and [on_best.low, on_best.high],
        kappa_worst=on_worst and on_worst.value,
        kappa_worst_ci=on_worst and [on_worst.low, on_worst.high],
    )


def _key(prompt_id: str, texts: Sequence[str]) -> str:
    """What names a set whatever the order of its completions: the prompt and the distinct texts."""
    return digest({"prompt": prompt_id, "completions": sorted({*texts})})
