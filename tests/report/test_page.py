"""The report page: one file, decision first, whatever parts of the summary there are, and no text obeyed."""

import functools
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from nothing_gpt.report.page import MOST_EXAMPLES, render_page
from tests.report import samples

SCRIPT = "[PIP] <script>alert('x')</script><img src=x onerror=alert(1)>"
SUMMARIES = {
    "full": samples.full_summary,
    "failed gate": samples.failed_gate_summary,
    "until pairs": samples.pairs_only_summary,
    "crashed": samples.crashed_summary,
    "empty": dict,
}


class Page(HTMLParser):
    """The elements of a page, and whether each is closed where it should be."""

    VOID = ("meta", "link", "input", "img", "br", "hr")

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@functools.cache
def full_page() -> str:
    return render_page(samples.full_summary(), samples.steps(), samples.pairs(299), samples.comparisons(64))


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_summary_gives_a_whole_page(name: str) -> None:
    page = Page(render_page(SUMMARIES[name]()))
    assert page.open == []
    assert page.count("h1") == 1


def test_the_page_starts_as_a_document_and_the_decision_comes_first() -> None:
    page = full_page()
    assert page.lstrip().startswith("<!DOCTYPE html>")
    sections = ("decision", "figures", "plots", "stages", "data", "training", "pairs", "comparisons")
    places = [page.index(f'id="{section}"') for section in sections]
    assert places == sorted(places)


def test_the_key_metrics_of_training_stand_beside_their_healthy_ranges() -> None:
    page = render_page(samples.full_summary() | {"training": {"eval_accuracy": 0.5, "eval_margin": 0.1}})
    assert page.count(">within<") == 1
    assert page.count(">outside<") == 1
    assert "above 0.55; above 0.7 is strong" in page


def test_each_gate_reason_has_a_tick_or_a_cross() -> None:
    page = render_page(samples.failed_gate_summary())
    assert (page.count("✗"), page.count("✓")) == (2, 1)


def test_the_page_loads_nothing() -> None:
    page = full_page()
    assert "http://" not in page
    assert "https://" not in page
    targets = [
        attributes.get(name) or "#" for _, attributes in Page(page).elements for name in ("src", "href", "xlink:href")
    ]
    assert all(target.startswith(("#", "data:")) for target in targets)
    assert "default-src 'none'" in page


def test_every_link_within_the_page_leads_somewhere() -> None:
    elements = Page(full_page()).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    links = [attributes["href"] or "" for tag, attributes in elements if tag == "a"]
    assert len(ids) == len(set(ids))
    assert len(links) == 7
    assert {link.removeprefix("#") for link in links} <= set(ids)


@pytest.mark.parametrize(
    "part",
    [
        "prompt",
        "chosen",
        "rejected",
        "candidate",
        "reference",
        "reason",
        "error",
        "gate",
        "drop",
        "character",
        "stage",
        "run",
        "training",
    ],
)
def test_no_text_becomes_markup(part: str) -> None:
    summary, pairs, comparisons = samples.full_summary(), samples.pairs(1), samples.comparisons(1)
    summary |= {"training": {}, "win_rate": None}  # fewer plots to draw
    summary["data"]["chosen_lengths"] = None
    message = [{"role": "user", "content": SCRIPT}]
    match part:
        case "prompt" | "chosen" | "rejected":
            pairs[0][part] = message
        case "candidate" | "reference":
            comparisons[0][part] = SCRIPT
        case "reason":
            comparisons[0]["reasons"] = [SCRIPT]
        case "error" | "run":
            summary[part] = SCRIPT
        case "gate":
            summary["gate"]["reasons"][0]["text"] = SCRIPT
        case "drop":
            summary["data"]["drops"] = {SCRIPT: 1}
        case "character":
            summary["data"]["characters_chosen"] = {SCRIPT: 1}
        case "stage":
            summary["stages"] = {SCRIPT: {"status": SCRIPT, "seconds": 1.0, "rows": 1}}
        case "training":
            summary["training"][SCRIPT] = SCRIPT
    text = render_page(summary, (), pairs, comparisons)
    after = Page(text)
    assert "&lt;script&gt;" in text
    assert after.count("script") == 1
    assert after.count("img") == 0
    assert after.open == []


def test_the_character_of_a_line_is_set_apart() -> None:
    assert "<b>[PIP]</b> &lt;script&gt;" in render_page({}, (), samples.pairs(1, SCRIPT))


def test_the_same_run_gives_the_same_bytes() -> None:
    assert full_page.__wrapped__() == full_page()


def test_fifty_pairs_and_comparisons_are_shown_from_the_whole_range() -> None:
    page = full_page()
    assert page.count('<article class="example"') == MOST_EXAMPLES + MOST_EXAMPLES
    assert f"<output>{MOST_EXAMPLES}</output> shown of 299" in page
    assert len(page.encode()) < 1_500_000


@pytest.mark.parametrize("text", ["x" * 100_000, "<&'\"" * 25_000, "語" * 100_000])
def test_very_long_texts_do_not_make_the_page_large(text: str) -> None:
    comparisons: list[dict[str, Any]] = [
        row | {"candidate": text, "reference": text, "reasons": [text, text]} for row in samples.comparisons(50)
    ]
    page = render_page(samples.full_summary(), samples.steps(), samples.pairs(50, text), comparisons)
    assert len(page.encode()) < 1_500_000
    assert "more characters)" in page


def test_pairs_given_as_plain_texts_are_shown_too() -> None:
    assert "only a line" in render_page({}, (), [samples.pairs(1)[0] | {"chosen": "only a line"}])


def test_a_missing_part_leaves_no_empty_section() -> None:
    page = render_page(samples.crashed_summary())
    assert re.findall(r'<section [^>]*\bid="(\w+)"', page) == ["decision", "stages"]
    assert "None" not in page


def test_comparisons_carry_their_outcome_for_the_filter() -> None:
    page = render_page({}, (), (), samples.comparisons(4))
    outcomes = re.findall(r'<article class="example" data-outcome="(\w*)"', page)
    assert outcomes == ["win", "win", "tie", "loss"]
