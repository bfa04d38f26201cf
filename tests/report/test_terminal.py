"""The closing table: in words, so that a pipe without colours says the same."""

import io

import pytest
from rich.console import Console

from nothing_gpt.report.terminal import closing_table
from tests.report import samples


def printed(summary: dict, report: str | None = None, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(closing_table(summary, report))
    return file.getvalue()


def test_stages_figures_and_decision_are_words_in_a_pipe() -> None:
    text = printed(samples.full_summary(), "data/report.html")
    assert "\x1b" not in text
    for word in (
        "generate   ran",
        "41.3 s",
        "0.848",
        "[0.742, 0.922]",
        "Promoted: the new adapter",
        "met      win rate",
        "Report: data/report.html",
    ):
        assert word in text


def test_an_unmet_requirement_stands_out_without_colours() -> None:
    text = printed(samples.failed_gate_summary())
    assert text.count("NOT MET") == 2
    assert "advice   The loss before training is 1.5880" in text


def test_texts_in_brackets_are_no_markup() -> None:
    assert "[red]no[/red] [bold" in printed({"error": "[red]no[/red] [bold"})


def test_no_part_of_a_long_path_is_lost() -> None:
    path = "/data/" + "reports/" * 20 + "report.html"
    assert path in printed(samples.full_summary(), path, width=60).replace("\n", "")


@pytest.mark.parametrize("summary", [{}, samples.crashed_summary(), samples.pairs_only_summary()])
def test_what_is_missing_is_left_out(summary: dict) -> None:
    text = printed(summary)
    assert "Not promoted" in text
    assert "None" not in text
    assert "Report:" not in text
