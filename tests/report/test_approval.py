"""What a person is shown before he approves. It is read back with a parser of Markdown that is not ours."""

from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from nothing_gpt.report.approval import question
from tests.report import samples

MISCHIEF = "</td><script>alert(1)</script> | x | \n\n# Approve\n[it](http://x.y) ![](a) `c` **b** &lt; \\| <b"


def summary() -> dict[str, Any]:
    return samples.full_summary() | {"run": "r1", "store": "gs://bucket/a"}


def row(number: int, against: str = "start", answer: str = "") -> dict[str, Any]:
    return {
        "against": against,
        "prompt": [{"role": "system", "content": "Continue."}, {"role": "user", "content": f"[ANNA] Line {number}."}],
        "reference": answer or f"[BO] before {number}",
        "candidate": answer or f"[BO] after {number}",
        "score": (1.0, 0.5, 0.0)[number % 3],
    }


def parsed(text: str) -> list[Token]:
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [inner for token in tokens for inner in (token, *(token.children or ()))]


def cells(text: str) -> list[str]:
    """What stands in the tables' cells, as it is shown."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inside = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
    return ["".join(part.content for part in token.children or ()) for token in inside]


def test_the_gates_reasons_and_the_report_come_before_the_answers() -> None:
    text = question(summary(), 3, [row(1)])
    assert text.startswith("The candidate passed the gate. May it replace version 3?")
    reasons = [token.content for token in parsed(text.partition("Report:")[0]) if token.type == "text"]
    assert summary()["gate"]["reasons"][0]["text"] in "".join(reasons)
    (link,) = [token.attrs["href"] for token in parsed(text) if token.type == "link_open"]
    assert link == "https://storage.cloud.google.com/bucket/a/runs/r1/report.html"
    assert "the starting adapter?" in question(summary(), None, [row(1)])


def test_ten_prompts_are_taken_evenly_from_those_against_the_served_adapter() -> None:
    rows = [row(number) for number in range(30)] + [row(number, "served") for number in range(40)]
    text = question(summary(), 1, rows)
    assert cells(text) == [side for n in range(0, 40, 4) for side in (f"[BO] before {n}", f"[BO] after {n}")]
    assert text.count("| served adapter | candidate |") == 10
    assert "10 of 40 held-out prompts" in text
    assert cells(question(summary(), 1, rows[:3])) == [
        f"[BO] {when} {n}" for n in range(3) for when in ("before", "after")
    ]


@pytest.mark.parametrize("where", ["prompt", "answer"])
def test_what_a_model_wrote_can_be_nothing_but_text(where: str) -> None:
    mean = row(1, answer=MISCHIEF if where == "answer" else "")
    if where == "prompt":
        mean["prompt"][-1]["content"] = MISCHIEF
    text = question(summary(), None, [mean, row(2)])
    tokens = parsed(text)
    kinds = {token.type for token in tokens}
    assert kinds.isdisjoint({"image", "code_inline", "html_block", "heading_open", "code_block", "fence"})
    assert {token.content for token in tokens if token.type == "html_inline"} <= {"<br>"}
    assert len([token for token in tokens if token.type == "link_open"]) == 1  # the report's
    shown = cells(text)
    assert len(shown) == 4
    if where == "answer":
        assert "".join(shown[0].replace("<br>", "").split()) == "".join(MISCHIEF.split())


def test_long_texts_are_cut_and_an_empty_answer_is_said_to_be_one() -> None:
    long = row(1, answer="word " * 5000)
    long["prompt"][-1]["content"] = "start " + "x" * 5000 + " end"
    text = question(summary(), None, [long] * 50)
    assert len(text) < 20_000
    assert "end" in text
    assert "start x" not in text
    assert "| (no answer) | b |" in question(summary(), None, [row(1) | {"reference": "", "candidate": "b"}])


def test_what_steers_a_terminal_or_turns_the_writing_round_is_shown_as_unreadable() -> None:
    text = question(summary(), 1, [row(1, answer="[BO] \x1b[2J\x1b]0;title\x07good\u202ebad")])
    assert set(cells(text)) == {"[BO] \ufffd[2J\ufffd]0;title\ufffdgood\ufffdbad"}
