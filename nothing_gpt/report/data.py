"""What a data report says: the figures on judged sets and their pairs, each with the sentence that explains it, and
the plots. The run's page and the page of a data folder both show it.

The figures are those of `quality.py` and `agreement.py`; any of them may be missing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from nothing_gpt.report import plots
from nothing_gpt.report.plots import Plot
from nothing_gpt.report.summary import Decision, Figure, count_of, dollars, number, share

Row = Mapping[str, Any]


def data_decision(data: Row, sides: tuple[int, int], warnings: list[str]) -> Decision:
    """The page's headline: how many pairs there are, and whether they keep the stated limits."""
    train, val = sides
    dropped = sum((data.get("drops") or {}).values())
    kept = "not all stated limits are kept; see the advice" if warnings else "all stated limits are kept"
    return Decision(
        "open" if warnings else "good",
        f"Data: {data['pairs']:,} pairs from {data['sets']:,} sets of completions",
        (f"{train:,} pairs to train on, {val:,} to validate; {dropped:,} sets dropped; {kept}.",),
    )


def data_figures(data: Row, people: Row | None = None) -> list[Figure]:
    """The figures that there are."""
    return [figure for figure in (*_kept(data), *_judge(data), *_people(people or {}), *_pairs(data)) if figure]


def data_plots(data: Row) -> list[Plot]:
    """The plots that there are data for."""
    made: list[Plot] = []
    if data.get("chosen_lengths"):
        made.append(
            Plot(
                "Length of chosen against rejected",
                plots.lengths(data["chosen_lengths"], data["rejected_lengths"]),
                "Above the dashed line the chosen completion is the longer one.",
            )
        )
    if data.get("pairs") is not None:
        made.append(
            Plot(
                "Kept and dropped",
                plots.drops(data["pairs"], data.get("drops") or {}),
                "Sets that became pairs, and sets that were dropped, by reason.",
            )
        )
    if data.get("best_by_position") and data.get("expected_by_position"):
        made.append(
            Plot(
                "Place of the best",
                plots.places(data["best_by_position"], data["expected_by_position"]),
                "Votes won by each place in the list that the judge saw. A judge of texts, not places, reaches the "
                "dashed marks.",
            )
        )
    return made


def characters(data: Row, most: int = 12) -> list[tuple[str, int, int, float, float]]:
    """(name, lines in chosen, lines in rejected, both as shares of the longest bar), most lines first."""
    chosen, rejected = data.get("characters_chosen") or {}, data.get("characters_rejected") or {}
    names = sorted(
        chosen.keys() | rejected.keys(), key=lambda name: (-chosen.get(name, 0) - rejected.get(name, 0), name)
    )
    longest = max([1, *chosen.values(), *rejected.values()])
    counts = [(name, chosen.get(name, 0), rejected.get(name, 0)) for name in names[:most]]
    return [(name, left, right, left / longest, right / longest) for name, left, right in counts]


def _kept(data: Row) -> Iterator[Figure | None]:
    yield number("Failures", data.get("failures"), note="Prompts without completions or verdicts to be used.", digits=0)
    yield number(
        "Degenerate sets",
        data.get("degenerate"),
        note="Too few distinct completions, or a pair with equal or empty sides.",
        digits=0,
    )
    yield share(
        "Completions cut",
        data.get("truncated_completions"),
        note="By the token limit"
        + _among(chosen=data.get("truncated_chosen"), rejected=data.get("truncated_rejected"))
        + ". No cut completion is chosen over a whole one.",
    )


def _judge(data: Row) -> Iterator[Figure | None]:
    by_model = data.get("agreement_by_model") or {}
    yield share(
        "Agreement of the two orders",
        data.get("agreement"),
        data.get("agreement_ci"),
        "Sets that keep their best and worst when shown in reverse"
        + (_among(**by_model) if len(by_model) > 1 else "")
        + ". A set on which the votes have no majority is dropped.",
    )
    yield share(
        "Agreement of the models",
        data.get("models_agreement"),
        data.get("models_agreement_ci"),
        "Sets on which all models of the panel name the same best and worst.",
    )
    yield share(
        "Self-consistency",
        data.get("self_consistency"),
        data.get("self_consistency_ci"),
        f"Of {count_of(data.get('repeats'), 'verdicts')} asked for again in the same order, those that came out the "
        "same.",
    )
    yield share("Ties", data.get("tie_share"), note="Sets with a vote that found no completion better than another.")
    won = data.get("best_by_position") or {}
    expected, total = data.get("expected_by_position") or {}, sum(won.values())
    if total and expected:
        yield Figure(
            "Best by place",
            " / ".join(f"{count / total:.0%}" for count in won.values()),
            note=f"Votes won by each place in the judge's list; {_shares(expected, total)} is no liking for places"
            f"{_chance(data.get('position_p'), ' on first votes')}.",
        )


def _people(people: Row) -> Iterator[Figure | None]:
    matched = f"{people.get('ranked')} sets, {people.get('matched')} of {people.get('labels')} labels matched"
    for what in ("best", "worst"):
        yield number(
            f"Agreement with people on the {what}",
            people.get(f"kappa_{what}"),
            people.get(f"kappa_{what}_ci"),
            f"Cohen's kappa: 1 is full agreement, 0 is chance; {matched}.",
        )


def _pairs(data: Row) -> Iterator[Figure | None]:
    yield share(
        "Longer one chosen",
        data.get("longer_chosen"),
        data.get("longer_chosen_ci"),
        f"Of the pairs that differ in length; 0.5 is no length bias{_chance(data.get('longer_chosen_p'))}.",
    )
    gap = data.get("length_gap")
    if gap is not None:
        yield Figure("Length gap", f"{gap:+,.1f}", note="Mean of chosen minus rejected, in characters.")
    for stage, usage in (data.get("usage") or {}).items():
        tokens = (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0)
        cost = usage.get("cost_usd")
        yield Figure(
            f"Tokens, {stage}",
            f"{tokens:,}",
            note=f"{usage.get('prompt_tokens') or 0:,} read and {usage.get('completion_tokens') or 0:,} written; "
            + ("the price is not known." if cost is None else f"cost {dollars(cost)}."),
        )


def _among(**shares: float | None) -> str:
    known = [f"{value:.0%} of {name}" for name, value in shares.items() if value is not None]
    return f" ({', '.join(known)})" if known else ""


def _chance(p: float | None, on: str = "") -> str:
    return "" if p is None else f" (p = {p:.2g}{on})"


def _shares(expected: Mapping[str, float], total: int) -> str:
    shares = [f"{count / total:.0%}" for count in expected.values()]
    return f"{shares[0]} each" if len(set(shares)) == 1 else " / ".join(shares)
