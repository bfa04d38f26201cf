"""Figures on judged sets and their pairs: what was kept, why the rest was dropped, how far the judge agrees with
itself, and whether it goes by place or length instead of quality.

Counted in one pass with memory that does not grow with the sets. Agreement with people is `agreement.py`.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from scipy import stats

from nothing_gpt.config import JudgeSettings
from nothing_gpt.intervals import wilson
from nothing_gpt.preferences import DEGENERATE, EMPTY, EQUAL, NOT_JUDGED, JudgedSet, Pair, pair_of
from nothing_gpt.verdicts import Ranking, Verdict, consensus

NOT_SAMPLED = "not sampled"

MOST_LENGTHS = 5_000
MOST_CHARACTERS = 20
LEAST_EXPECTED = 5
"""Sets a place must be expected to win before the chi-square test is asked (Cochran 1954)."""

_CHARACTER = re.compile(r"^\[([^\]\n]{1,40})\]", re.MULTILINE)


class Quality(TypedDict):
    """The data report, as `quality.json` holds it. Shares are from 0 to 1, `_ci` is a 95 % interval [low, high], `_p`
    a two-sided p-value, and None stands for what cannot be measured on these data."""

    sets: int
    """Sets with a completion to choose from, judged or not."""
    judged_sets: int
    pairs: int
    drops: dict[str, int]
    failures: int
    """Prompts without completions, and sets without a verdict, that could be used."""
    degenerate: int
    """Sets with nothing to prefer: too few distinct completions, or a pair with equal or empty sides."""

    agreement: float | None
    """Share of the sets whose order and reverse order give the same best and worst; with a panel, of all models' sets.
    A tie is none."""
    agreement_ci: list[float] | None
    agreement_by_model: dict[str, float]
    models_agreement: float | None
    """Share of the sets judged by several models on which each model's votes give the same best and worst."""
    models_agreement_ci: list[float] | None
    self_consistency: float | None
    """Share of the verdicts asked for once more in the same order that came out the same."""
    self_consistency_ci: list[float] | None
    repeats: int
    tie_share: float | None
    """Share of the judged sets with a vote for a tie."""
    best_by_position: dict[str, int]
    """Votes won by each place in the list that the judge saw, from "1"."""
    expected_by_position: dict[str, float]
    """Votes that a judge without a liking for places would give each."""
    position_p: float | None
    """Chi-square test of equal chances on each set's first vote. Its order is random and the sets are independent;
    a set's second vote, in the reverse order, is not independent of its first."""

    longer_chosen: float | None
    """Share of the pairs of unequal lengths whose chosen side is the longer one; the p-value is binomial."""
    longer_chosen_ci: list[float] | None
    longer_chosen_p: float | None
    length_gap: float | None
    """Mean of chosen minus rejected (characters)."""
    chosen_lengths: list[int]
    """Lengths (characters) of the chosen sides and, in the same order, of the rejected ones; of at most `MOST_LENGTHS`
    pairs, evenly taken."""
    rejected_lengths: list[int]
    truncated_completions: float | None
    """Share of all completions that the token limit cut; then that of the chosen and of the rejected ones."""
    truncated_chosen: float | None
    truncated_rejected: float | None
    characters_chosen: dict[str, int]
    """Lines spoken by each character in the chosen completions, the most talkative first."""
    characters_rejected: dict[str, int]

    usage: dict[str, dict[str, Any]]
    """`prompt_tokens`, `completion_tokens` and `cost_usd` (None where the price is not known) by stage."""


def measure(
    judged: Iterable[JudgedSet], sampled: Mapping[str, Any] | None = None, judging: Mapping[str, Any] | None = None
) -> Quality:
    """The data report on judged sets. `sampled` and `judging` are what the two stages before counted, where known."""
    counts = _Counts()
    for item in judged:
        counts.add(item)
    return counts.quality(sampled or {}, judging or {})


def beyond_limits(quality: Mapping[str, Any], settings: JudgeSettings) -> list[str]:
    """A sentence for each stated limit that the data do not keep."""
    said: list[str] = []
    for what, share in (("orders", quality.get("agreement")), ("models", quality.get("models_agreement"))):
        if share is not None and share < settings.min_agreement:
            said.append(
                f"judge.min_agreement: the judge's {what} agree on {share:.1%} of the sets, below the limit of "
                f"{settings.min_agreement:.0%}; take a stronger judge.model, or completions that differ more"
            )
    longer = quality.get("longer_chosen")
    if longer is not None and longer > settings.max_longer_chosen:
        said.append(
            f"judge.max_longer_chosen: the longer completion is chosen in {longer:.1%} of the pairs, above the limit "
            f"of {settings.max_longer_chosen:.0%}; tell the judge to ignore length (judge.rubric), or the adapter "
            "learns it"
        )
    if quality["pairs"] < settings.min_pairs:
        said.append(
            f"judge.min_pairs: {quality['pairs']:,} pairs, fewer than the limit of {settings.min_pairs:,}; give more "
            "prompts, or completions that differ more"
        )
    return said


@dataclass
class _Share:
    """Successes among trials."""

    successes: int = 0
    n: int = 0

    def add(self, success: bool) -> None:
        self.successes += success
        self.n += 1

    @property
    def value(self) -> float | None:
        return self.successes / self.n if self.n else None

    @property
    def ci(self) -> list[float] | None:
        return [*wilson(self.successes, self.n)[1:3]] if self.n else None

    @property
    def p(self) -> float | None:
        return float(stats.binomtest(self.successes, self.n).pvalue) if self.n else None


@dataclass
class _Counts:
    """Everything that is counted, a set at a time."""

    sets: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    ties: _Share = field(default_factory=_Share)
    orders: dict[str, _Share] = field(default_factory=dict)
    models: _Share = field(default_factory=_Share)
    repeats: _Share = field(default_factory=_Share)
    won: dict[int, Counter[int]] = field(default_factory=dict)
    """Votes won by each place, by the number of completions shown."""
    first_won: dict[int, Counter[int]] = field(default_factory=dict)
    longer: _Share = field(default_factory=_Share)
    lengths: tuple["array[int]", "array[int]"] = field(default_factory=lambda: (array("l"), array("l")))
    cut: tuple[_Share, _Share, _Share] = field(default_factory=lambda: (_Share(), _Share(), _Share()))
    characters: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, judged: JudgedSet) -> None:
        self.sets += 1
        for cut in judged.item.truncated:
            self.cut[0].add(cut)
        if judged.failed is None and judged.votes:
            self._votes(judged)
        outcome = pair_of(judged)
        if isinstance(outcome, Pair):
            self._pair(outcome, judged.item.truncated)
        else:
            self.drops[outcome] += 1

    def _votes(self, judged: JudgedSet) -> None:
        votes = judged.votes
        self.ties.add(any(vote.tie for vote in votes))
        ballots: dict[str, list[Verdict]] = {}
        for vote in votes:
            ballots.setdefault(vote.model, []).append(vote)
            _count_place(self.won, vote)
        _count_place(self.first_won, votes[0])
        for model, ballot in ballots.items():
            reverse = next((vote for vote in ballot[1:] if vote.order == ballot[0].order[::-1]), None)
            if reverse is not None:
                agreed = _ranked(reverse) == _ranked(ballot[0]) is not None
                self.orders.setdefault(model, _Share()).add(agreed)
        if len(ballots) > 1:
            rankings = {consensus(ballot) for ballot in ballots.values()}
            self.models.add(len(rankings) == 1 and all(isinstance(ranking, Ranking) for ranking in rankings))
        for repeat in judged.repeats:
            before = next((v for v in votes if (v.model, v.order) == (repeat.model, repeat.order)), None)
            if before is not None:
                self.repeats.add(_ranked(before) == _ranked(repeat))
        for vote in (*votes, *judged.repeats):
            self.tokens.update(prompt_tokens=vote.prompt_tokens, completion_tokens=vote.completion_tokens)

    def _pair(self, pair: Pair, truncated: list[bool]) -> None:
        for place, (text, index) in enumerate(((pair.chosen, pair.best), (pair.rejected, pair.worst))):
            self.lengths[place].append(len(text))
            self.cut[place + 1].add(truncated[index])
            self.characters[place].update(_CHARACTER.findall(text))
        if len(pair.chosen) != len(pair.rejected):
            self.longer.add(len(pair.chosen) > len(pair.rejected))

    def quality(self, sampled: Mapping[str, Any], judging: Mapping[str, Any]) -> Quality:
        pairs = len(self.lengths[0])
        drops = self.drops + Counter({DEGENERATE: sampled.get("degenerate", 0), NOT_SAMPLED: sampled.get("failed", 0)})
        orders = _Share(
            sum(share.successes for share in self.orders.values()), sum(share.n for share in self.orders.values())
        )
        every = -(-pairs // MOST_LENGTHS) or 1
        places = range(max(self.won, default=0))
        return Quality(
            sets=self.sets,
            judged_sets=self.ties.n,
            pairs=pairs,
            drops=dict(sorted(drops.items())),
            failures=drops[NOT_SAMPLED] + drops[NOT_JUDGED],
            degenerate=drops[DEGENERATE] + drops[EQUAL] + drops[EMPTY],
            agreement=orders.value,
            agreement_ci=orders.ci,
            agreement_by_model={model: share.successes / share.n for model, share in sorted(self.orders.items())},
            models_agreement=self.models.value,
            models_agreement_ci=self.models.ci,
            self_consistency=self.repeats.value,
            self_consistency_ci=self.repeats.ci,
            repeats=self.repeats.n,
            tie_share=self.ties.value,
            best_by_position={str(place + 1): sum(won[place] for won in self.won.values()) for place in places},
            expected_by_position={
                str(place + 1): sum(won.total() / shown for shown, won in self.won.items() if place < shown)
                for place in places
            },
            position_p=_equal_chances(self.first_won),
            longer_chosen=self.longer.value,
            longer_chosen_ci=self.longer.ci,
            longer_chosen_p=self.longer.p,
            length_gap=(sum(self.lengths[0]) - sum(self.lengths[1])) / pairs if pairs else None,
            chosen_lengths=self.lengths[0][::every].tolist(),
            rejected_lengths=self.lengths[1][::every].tolist(),
            truncated_completions=self.cut[0].value,
            truncated_chosen=self.cut[1].value,
            truncated_rejected=self.cut[2].value,
            characters_chosen=dict(self.characters[0].most_common(MOST_CHARACTERS)),
            characters_rejected=dict(self.characters[1].most_common(MOST_CHARACTERS)),
            usage=_usage({"generate": sampled.get("usage") or {}, "judge": judging.get("usage") or +self.tokens}),
        )


def _ranked(vote: Verdict) -> tuple[int, int] | None:
    return None if vote.tie else (vote.best, vote.worst)


def _count_place(won: dict[int, Counter[int]], vote: Verdict) -> None:
    if not vote.tie:
        won.setdefault(len(vote.order), Counter())[vote.order.index(vote.best)] += 1


def _equal_chances(won: Mapping[int, Counter[int]]) -> float | None:
    """Pearson's chi-square test that every place wins as often; sets of different sizes add up, as do their degrees of
    freedom."""
    statistic, freedom = 0.0, 0
    for shown, counts in won.items():
        expected = counts.total() / shown
        if expected >= LEAST_EXPECTED:
            statistic += sum((counts[place] - expected) ** 2 / expected for place in range(shown))
            freedom += shown - 1
    return float(stats.chi2.sf(statistic, freedom)) if freedom else None


def _usage(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    kept = ("prompt_tokens", "completion_tokens", "cost_usd")
    return {stage: {name: usage.get(name) for name in kept} for stage, usage in stages.items() if usage}
