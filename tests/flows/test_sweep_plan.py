"""`nothing-gpt sweep --dry-run`: which stages the points share, before anything is there."""

from pathlib import Path

import pytest

from tests.flows.conftest import Call
from tests.flows.test_cli import local, prompts_file

ONCE = [[stage, "all"] for stage in ("scripts", "base", "sft", "prompts", "generate_pairs", "judge", "pairs")]
FROM_COMPLETIONS = ("generate_pairs", "judge", "pairs", "train", "evaluate")


def shared(printed: str) -> list[list[str]]:
    """Each stage that is to do, with its points."""
    rows = [line.split(" to do ") for line in printed.splitlines() if " to do " in line]
    return [[stage.strip(), points.strip().partition("  ")[0]] for stage, points in rows]


@pytest.mark.parametrize(
    ("sweep", "wanted"),
    [
        ("beta", [*ONCE, *([stage, n] for stage in ("train", "evaluate") for n in "1234")]),
        ("judge", [*ONCE, ["train", "all"], ["evaluate", "all"]]),  # here there is one judge, whatever its name
        ("completions", [*ONCE[:4], *([stage, n] for stage in FROM_COMPLETIONS for n in "12")]),
    ],
)  # fmt: skip
def test_a_stage_is_shared_by_the_points_that_make_it_alike(program: Call, sweep: str, wanted: list[list[str]]) -> None:
    assert shared(program("sweep", sweep, "--dry-run").out) == wanted


def test_some_points_may_share_what_others_do_not(program: Call, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("grid: {judge.val_ratio: [0.1, 0.2], training.beta: [0.1, 0.05], gate.min_accuracy: [0.5]}")
    found = shared(program("sweep", str(file), "--dry-run").out)
    assert [row for row in found if row[0] in ("judge", "pairs", "train")] == [
        ["judge", "all"],
        ["pairs", "1, 2"],
        ["pairs", "3, 4"],
        *(["train", n] for n in "1234"),
    ]


def test_a_shared_stage_is_paid_for_once(program: Call, tmp_path: Path) -> None:
    options = [
        *local(prompts_file(tmp_path, 100)),
        *("--set", "judge.model=m", "--set", "judge.prices={m: {input: 1, output: 1}}"),
    ]
    one = float(program("run", "--until", "judge", "--dry-run", *options).out.split("expected cost: ")[1].split()[0])
    whole = float(program("run", "--until", "evaluate", "--dry-run", *options).out.split("cost: ")[1].split()[0])
    swept = program("sweep", "beta", "--dry-run", *options).out
    assert swept.splitlines()[:2] == ["1  training.beta=0.1", "2  training.beta=0.05"]
    assert float(swept.split(" calls, ")[1].split()[0]) == pytest.approx(one + 4 * (whole - one), abs=0.05)


def test_with_halving_the_first_third_is_listed_and_the_rest_is_at_most(program: Call) -> None:
    printed = program("sweep", "beta", "--halving", "--dry-run").out
    assert shared(printed)[7:12] == [["train (a third)", n] for n in "1234"] + [["train", "1"]]
    assert "at most: 1,728 calls, 0.00 USD" in printed


def test_nothing_is_made(program: Call, data: Path) -> None:
    program("sweep", "temperature", "--dry-run")
    assert not [*data.glob("store/*/*/manifest.json")]


def test_a_sweep_that_is_not_there_is_one_line(program: Call) -> None:
    ended = program("sweep", "gamma", "--dry-run")
    assert (ended.code, ended.error) == (
        1, "gamma: no such sweep (beta, judge, completions, temperature, data, epochs, warmup), and no such file"
    )  # fmt: skip
