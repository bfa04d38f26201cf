"""Figures on preference data: how much was kept and why the rest was dropped, how far the judge agrees with itself,
and whether it simply prefers long answers. Pure functions of plain data.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from scipy import stats

from nothing_gpt.intervals import wilson
from nothing_gpt.preferences import Pair
from nothing_gpt.verdicts import Ranking, Verdict, consensus

_CHARACTER = re.compile(r"^\[([^\]\n]+)\]", re.MULTILINE)


def data_quality(pairs: Sequence[Pair], votes: Iterable[Sequence[Verdict]], drops: Counter[str]) -> dict[str, Any]:
    """The data report: plain numbers and lists, ready for JSON. `drops` counts dropped prompts by reason."""
    lengths = [(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    unequal = [chosen > rejected for chosen, rejected in lengths if chosen != rejected]
    judged = agreed = ties = 0
    positions: Counter[int] = Counter()
    for ballot in votes:
        judged += 1
        ties += any(vote.tie for vote in ballot)
        agreed += isinstance(consensus(ballot), Ranking)
        positions.update(vote.order.index(vote.best) + 1 for vote in ballot if not vote.tie)
    longer = wilson(sum(unequal), len(unequal)) if unequal else None
    return {
        "pairs": len(pairs),
        "drops": dict(sorted(drops.items())),
        "judged_sets": judged,
        "agreement": agreed / judged if judged else None,
        "tie_share": ties / judged if judged else None,
        "best_by_position": {str(place): count for place, count in sorted(positions.items())},
        "longer_chosen": longer.value if longer else None,
        "longer_chosen_ci": [longer.low, longer.high] if longer else None,
        "longer_chosen_p": float(stats.binomtest(sum(unequal), len(unequal)).pvalue) if unequal else None,
        "length_gap": sum(c - r for c, r in lengths) / len(lengths) if lengths else None,
        "chosen_lengths": [chosen for chosen, _ in lengths],
        "rejected_lengths": [rejected for _, rejected in lengths],
        "characters_chosen": _characters(pair.chosen for pair in pairs),
        "characters_rejected": _characters(pair.rejected for pair in pairs),
    }


def _characters(texts: Iterable[str]) -> dict[str, int]:
    """How many lines each character speaks, the most talkative first; the first 20 of them."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_CHARACTER.findall(text))
    return dict(counts.most_common(20))
