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

    def usd(printed: str) -> float:
        return float(printed.split(" calls, ")[1].split()[0])

    one = usd(program("run", "--until", "judge", "--dry-run", *options).out)
    whole = usd(program("run", "--until", "evaluate", "--dry-run", *options).out)
    swept = program("sweep", "beta", "--dry-run", *options).out
    assert swept.splitlines()[:2] == ["1  training.beta=0.1", "2  training.beta=0.05"]
    assert usd(swept) == pytest.approx(one + 4 * (whole - one), abs=0.05)


@pytest.mark.parametrize(
    ("sweep", "points"),
    [("beta", 4), ("judge", 2), ("completions", 2), ("temperature", 4), ("data", 2), ("epochs", 4), ("warmup", 3)],
)
def test_each_of_the_seven_can_be_planned_with_engines_of_ones_own_and_has_a_price(
    program: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: str, points: int
) -> None:
    (tmp_path / "defaults.yaml").write_text("{}")
    options = local(prompts_file(tmp_path, 60))
    (tmp_path / "data").mkdir()
    rows = (tmp_path / "prompts.jsonl").read_text()
    (tmp_path / "data" / "prompts.jsonl").write_text(rows)
    (tmp_path / "data" / "train-prompts.jsonl").write_text(rows.replace("Platform", "Track"))
    monkeypatch.chdir(tmp_path)
    printed = program("sweep", sweep, "--dry-run", "--settings", "defaults.yaml", *options).out
    assert [line.split()[0] for line in printed.splitlines()[:points]] == [str(n + 1) for n in range(points)]
    todo = [line.split() for line in printed.splitlines() if " to do " in line]
    prices = [float(row[-1]) for row in todo if row[0] in ("judge", "evaluate")]
    assert 0 < len(prices) == sum(price > 0 for price in prices)
    assert printed.splitlines()[-1].startswith("expected: ")
    assert "without" not in printed


def test_a_judge_without_a_price_is_named_beside_the_sum(program: Call, tmp_path: Path) -> None:
    (tmp_path / "defaults.yaml").write_text("{}")
    (tmp_path / "sweep.yaml").write_text("grid: {judge.model: [gemini-3.5-flash-lite, mine]}")
    options = ["--settings", str(tmp_path / "defaults.yaml"), *local(prompts_file(tmp_path, 60))]
    printed = program("sweep", str(tmp_path / "sweep.yaml"), "--dry-run", *options).out
    assert printed.splitlines()[-1].endswith(" USD, without evaluate, judge: the price of mine is not in judge.prices")


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
