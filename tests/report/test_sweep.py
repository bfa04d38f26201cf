"""What a sweep's report says."""

from typing import Any

from nothing_gpt.ranking import Outcome, ranked, rows
from nothing_gpt.report.sweep import render_sweep_page, sweep_decision, sweep_markdown, sweep_plots, sweep_table
from tests.test_ranking import outcome, run


def summary(*outcomes: Outcome, **others: Any) -> dict[str, Any]:
    return {
        "sweep": "20310504-101500-000",
        "description": "Lower <beta>.",
        "place": "embedded",
        "store": "data/store",
        "started": "2031-05-04T10:15:00+00:00",
        "seconds": 310.0,
        "points": rows(ranked(outcomes)),
        "promoted": None,
        "error": None,
        **others,
    }


FAILED = Outcome("training.beta=0.3", [], "the disk is full; make room")


def test_what_cannot_be_told_from_the_best_is_said() -> None:
    found = sweep_decision(summary(outcome("a", 36, 60), outcome("b", 35, 58), outcome("c", 5, 10), FAILED))
    assert (found.headline, found.tone) == ("Best: a", "open")
    assert found.details == (
        "Not distinguishable from it (p above 0.05): b.", "training.beta=0.3: the disk is full; make room"
    )  # fmt: skip


def test_a_best_that_differs_from_all_others_is_said_too() -> None:
    found = sweep_decision(summary(outcome("a", 36, 60), outcome("c", 5, 10)))
    assert (found.tone, found.details) == ("good", ("It differs from every other that was measured (p below 0.05).",))


def test_what_became_of_the_promotion_comes_first() -> None:
    promoted = summary(outcome("a", 36, 60), promoted={"name": "seinfeld", "version": 3})
    assert sweep_decision(promoted).headline == "Promoted: a is served as seinfeld, version 3"
    assert sweep_decision(summary(outcome("a", 36, 60), error="it went")).headline == "Not promoted: a"
    refused = summary(outcome("a", 36, 60, passed=False))
    assert sweep_decision(refused).headline == "No point passes the gate; the best is a"
    assert sweep_decision(summary(FAILED)).headline == "No point was measured"


def test_the_table_holds_every_point_best_first() -> None:
    left_out = Outcome("small", [run(0.9, None, None)], left_out=True)
    table = sweep_table(summary(FAILED, left_out, outcome("b", 10, 58), outcome("a", 36, 60)))
    assert [row["point"] for row in table] == ["a", "b", "small", "training.beta=0.3"]
    assert table[0] == {
        "point": "a", "gate": "passed", "accuracy": "0.900 [0.100, 0.900]", "win rate": "0.938 [0.200, 0.800]",
        "cost": "$0.50", "time": "1 min 00 s", "compared with the best": "",
    }  # fmt: skip
    against = "differs; accuracy 26 : 0 of 40, p = 6e-08; win rate 2 : 0 of 64, p = 0.75"
    assert table[1]["compared with the best"] == against
    assert table[2]["gate"] == "left out"
    assert table[3]["accuracy"] == ""


def test_markdown_and_page_hold_the_table_and_escape_what_they_are_given() -> None:
    swept = summary(outcome("training.beta=0.1", 36, 60), outcome("training.beta=0.05", 35, 58), FAILED)
    page = render_sweep_page(swept, sweep_plots(swept))
    assert "Lower &lt;beta&gt;." in page
    assert "<td>training.beta=0.05</td>" in page
    assert "beta=0.1<" in page.replace("training.beta=0.1<", "")  # the plot's label
    assert r"> Lower \<beta\>." in sweep_markdown(swept)
    assert "| training.beta=0.1 | passed | 0.900" in sweep_markdown(swept)


def test_the_same_sweep_gives_the_same_bytes_and_nothing_measured_gives_no_plot() -> None:
    swept = summary(outcome("a", 36, 60), outcome("b", 35, 58))
    assert sweep_plots(swept) == sweep_plots(swept)
    assert sweep_plots(summary(FAILED)) == []
