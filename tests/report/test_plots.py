"""The plots: reproducible bytes, and SVG that can stand beside others in one page."""

import functools
import re
import xml.etree.ElementTree as ET

import pytest

from nothing_gpt.report import plots
from tests.report import samples

DATA = samples.full_summary()["data"]
DRAW = {
    "lengths": lambda: plots.lengths(DATA["chosen_lengths"], DATA["rejected_lengths"]),
    "training": lambda: plots.training(samples.steps(), 0.6931),
    "intervals": lambda: plots.intervals({"win rate": (0.848, [0.742, 0.922]), "odd": (0.5, [0.4, 0.6])}),
    "places": lambda: plots.places(DATA["best_by_position"], DATA["expected_by_position"]),
    "drops": lambda: plots.drops(299, DATA["drops"]),
}


@functools.cache
def drawn(name: str) -> str:
    return DRAW[name]()


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))


@pytest.mark.parametrize("name", DRAW)
def test_the_same_data_give_the_same_bytes(name: str) -> None:
    assert DRAW[name]() == drawn(name)


@pytest.mark.parametrize("name", DRAW)
def test_a_plot_names_no_address_and_fits_into_any_width(name: str) -> None:
    svg = drawn(name)
    root = parsed(svg)
    assert root.tag == "svg"
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert "http" not in svg


@pytest.mark.parametrize("name", DRAW)
def test_every_reference_inside_a_plot_is_answered_inside_it(name: str) -> None:
    svg = drawn(name)
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    assert references
    assert references <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_no_two_plots_share_an_id() -> None:
    ids = [name for plot in DRAW for name in re.findall(r'\bid="([^"]+)"', drawn(plot))]
    assert len(ids) == len(set(ids))


def test_words_stay_words_and_colours_can_be_set_by_the_page() -> None:
    svg = drawn("drops")
    assert {"votes disagree", "299"} <= {element.text for element in parsed(svg).iter("text")}
    assert "var(--rejected, " in svg


def test_a_reason_with_markup_or_dollars_is_shown_as_it_is() -> None:
    reason = "<b>costs $1 & $2</b>"
    assert reason in [element.text for element in parsed(plots.drops(1, {reason: 2})).iter("text")]


def test_a_reader_s_own_matplotlib_settings_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn("lengths")
    monkeypatch.setitem(plots.matplotlib.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(plots.matplotlib.rcParams, "lines.linestyle", ":")
    assert DRAW["lengths"]() == drawn("lengths")


def test_a_plot_of_very_many_pairs_stays_small() -> None:
    assert len(plots.lengths(list(range(100_000)), list(range(100_000)))) < 150_000


def test_a_diverged_training_is_still_drawn() -> None:
    steps = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}]
    assert "<svg" in plots.training(steps, 0.6931)


def test_no_pairs_at_all_are_still_drawn() -> None:
    assert "pairs kept" in plots.drops(0, {})
    assert "<svg" in plots.lengths([5], [5])
    assert "shown as 1" in plots.places({"1": 0}, {"1": 0.0})
