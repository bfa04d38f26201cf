"""What came of a sweep: the order of its points, and which really differ."""

from typing import Any

from nothing_gpt.ranking import Outcome, ranked, rows


def run(
    accuracy: float, win_rate: float | None, passed: bool | None = True, cost: float | None = 0.5
) -> dict[str, Any]:
    return {
        "run": "r",
        "seconds": 60.0,
        "cost_usd": cost,
        "training": {"eval_accuracy": accuracy, "eval_accuracy_ci": [0.1, 0.9], "val_pairs": 40},
        "win_rate": {"value": win_rate, "ci": [0.2, 0.8], "n": 64} if win_rate is not None else None,
        "gate": {"passed": passed, "reasons": []} if passed is not None else None,
        "stages": {"train": {"artifact": "train/1"}, "gate": {"artifact": None}},
    }


def outcome(name: str, right: int = 0, wins: int = 0, **others: Any) -> Outcome:
    """Of 40 validation pairs so many were told apart, of 64 prompts so many won."""
    return Outcome(
        name,
        [run(right / 40, wins / 64, **others)],
        right={str(n): float(n < right) for n in range(40)},
        scores={str(n): float(n < wins) for n in range(64)},
    )


def test_the_best_has_the_highest_win_rate_of_those_that_pass_the_gate() -> None:
    failed, left_out = Outcome("failed", [], "no disk"), Outcome("left out", [run(0.9, None, None)], left_out=True)
    refused, good = outcome("refused", 40, 64, passed=False), outcome("good", 30, 40)
    better, equal = outcome("better", 20, 50), outcome("equal", 25, 50)
    found = ranked([failed, left_out, refused, good, better, equal])
    assert [outcome.name for outcome in found] == ["equal", "better", "good", "refused", "left out", "failed"]


def test_a_point_differs_where_one_of_the_measures_says_so_after_the_correction() -> None:
    table = rows([outcome("best", 36, 60), outcome("alike", 35, 58), outcome("worse", 10, 58)])
    assert [row["differs"] for row in table] == [None, False, True]
    assert table[2]["against_best"]["accuracy"]["better"] == 26
    assert table[1]["against_best"]["win rate"]["p"] == 1.0


def test_what_is_just_below_the_limit_alone_is_not_among_many() -> None:
    alone = rows([outcome("best", 36, 60), outcome("other", 29, 60)])
    assert alone[1]["differs"] is True
    many = rows([outcome("best", 36, 60), outcome("other", 29, 60), *(outcome(f"{n}", 36, 60) for n in range(6))])
    assert many[1]["differs"] is False


def test_points_that_were_not_measured_are_compared_with_none() -> None:
    left_out = Outcome("left out", [run(0.9, None, None)], left_out=True)
    table = rows([outcome("best", 36, 60), left_out, Outcome("failed", [], "no disk")])
    assert [(row["against_best"], row["differs"]) for row in table] == [({}, None)] * 3
    assert table[2]["error"] == "no disk"


def test_points_with_pairs_of_their_own_are_compared_on_the_prompts_alone() -> None:
    other = Outcome("other", [run(0.5, 0.5)], right={"elsewhere": 1.0}, scores={str(n): 0.0 for n in range(64)})
    assert [*rows([outcome("best", 36, 60), other])[1]["against_best"]] == ["win rate"]


def test_cost_and_time_are_those_of_all_runs_of_a_point_and_unknown_if_one_is() -> None:
    assert Outcome("a", [run(0.5, None), run(0.6, 0.7)]).figures["cost_usd"] == 1.0
    assert Outcome("a", [run(0.5, None), run(0.6, 0.7)]).figures["minutes"] == 2.0
    assert Outcome("a", [run(0.5, None, cost=None), run(0.6, 0.7)]).figures["cost_usd"] is None
