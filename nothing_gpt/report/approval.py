"""What a person is shown who is asked whether a candidate may be promoted: the gate's reasons and answers side by side.

It is the description of Prefect's form, which is narrow, and is printed on a terminal. The whole report is elsewhere.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from nothing_gpt.report.advice import Summary
from nothing_gpt.report.markdown import report_page

PAIRS = 10
_PROMPT, _ANSWER = 200, 500
"""Most characters of a prompt, whose end is shown, and of an answer."""
_COLUMN = 28
"""Characters a line of a table's cell, which Prefect's form does not break: two columns are what it shows at once."""
_NAMES = {"start": "starting adapter", "served": "served adapter"}
_OUTCOMES = {1: "the judge prefers the candidate", 0: "the judge prefers the other one"}


def question(summary: Summary, replaces: int | None, comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The question as Markdown. `replaces` is the version that is served, None for the starting adapter. Of the
    `comparisons`, rows `{against, prompt, reference, candidate, score}` of `evaluate`, ten are shown, evenly taken."""
    served = f"version {replaces}" if replaces else "the starting adapter"
    against = comparisons[-1]["against"]  # the served one, where that is not the starting one
    rows = [row for row in comparisons if row["against"] == against]
    shown = [rows[i * len(rows) // PAIRS] for i in range(PAIRS)] if len(rows) > PAIRS else rows
    parts = [
        f"The candidate passed the gate. May it replace {served}?",
        "\n".join(f"- {_quoted(reason['text'])}" for reason in summary["gate"]["reasons"]),
        f"Report: {report_page(summary)}, and under this run's Artifacts.",
        f"Answers to {len(shown)} of {len(rows)} held-out prompts, evenly taken:",
        *(_side_by_side(number, row, _NAMES[against]) for number, row in enumerate(shown, 1)),
    ]
    return "\n\n".join(parts) + "\n"


def _side_by_side(number: int, row: Mapping[str, Any], reference: str) -> str:
    asked = row["prompt"][-1]["content"]
    asked = asked if len(asked) <= _PROMPT else f"… {asked[-_PROMPT:]}"
    outcome = _OUTCOMES.get(row["score"], "a tie")
    return (
        f"**{number}.** {_quoted(asked)} **({outcome})**\n\n| {reference} | candidate |\n| --- | --- |\n"
        f"| {_cell(row['reference'])} | {_cell(row['candidate'])} |"
    )


def _cell(text: str) -> str:
    cut = text if len(text) <= _ANSWER else f"{text[:_ANSWER]} …"
    lines = [part for line in cut.splitlines() for part in textwrap.wrap(line, _COLUMN)]
    return " <br> ".join(map(_quoted, lines)) or "(no answer)"


def _quoted(text: str) -> str:
    """A text that stands for itself: whatever a model wrote, it is no markup, link or end of a table, and steers no
    terminal."""
    line = " ".join(text.split())
    readable = "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", readable)
