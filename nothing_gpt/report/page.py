"""One HTML page that holds everything about a run, the decision first, or about a data folder, and needs nothing
outside itself.

It shows what others computed. Texts of models, judges and prompt files are escaped, and the page's own
security policy forbids it to load anything.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from nothing_gpt.report import plots
from nothing_gpt.report.advice import Summary, advice, start_loss, training_checks
from nothing_gpt.report.data import characters, data_decision, data_figures, data_plots
from nothing_gpt.report.plots import Plot
from nothing_gpt.report.summary import decision, facts, key_figures, stage_lines

TEMPLATE = Path(__file__).with_name("page.html.jinja")
MOST_EXAMPLES = 50
# 50 pairs and 50 comparisons of ordinary length take about 300 kB; of very long ones fewer are shown.
_MOST_BYTES = 450_000
_MOST_CHARACTERS = 4_000  # of one text; a completion is a tenth of it

Row = Mapping[str, Any]


class Example(NamedTuple):
    """A prompt and two answers to it."""

    prompt: list[dict[str, str]]
    left: str
    right: str
    outcome: str = ""
    reasons: Sequence[str] = ()


class Examples(NamedTuple):
    """The examples shown, and how many there are in all."""

    shown: list[Example]
    total: int


NO_EXAMPLES = Examples([], 0)


def render_page(
    summary: Summary,
    steps: Sequence[Row] = (),
    pairs: Sequence[Row] = (),
    comparisons: Sequence[Row] = (),
    plots: list[Plot] | None = None,
) -> str:
    """The report on a run as HTML. What the summary or the details lack is left out.

    `steps` are the trainer's log rows, `pairs` rows `{prompt, chosen, rejected, reasons}` of `examples.jsonl`, and
    `comparisons` rows `{prompt, reference, candidate, score, reasons}` of `evaluate`. `plots` are those of `run_plots`,
    where they are drawn already. The same input gives the same bytes.
    """
    data, training, gate = (summary.get(key) or {} for key in ("data", "training", "gate"))
    return render(
        decision=decision(summary),
        facts=facts(summary),
        requirements=gate.get("reasons") or [],
        figures=key_figures(summary),
        points=[],
        advice=advice(summary),
        checks=training_checks(summary),
        stages=stage_lines(summary),
        plots=run_plots(summary, steps) if plots is None else plots,
        data=data_figures(data, summary.get("people")),
        characters=characters(data),
        training=_rest(training),
        pairs=_examples(pairs, _pair, data.get("pairs")),
        comparisons=_examples(comparisons, _comparison),
        source="The figures are those of nothing-gpt report --json.",
    )


def render_data_page(
    data: Row, sides: tuple[int, int], pairs: Sequence[Row], warnings: list[str], people: Row | None = None
) -> str:
    """The report on a data folder as HTML: `data` are the figures of `quality.py`, `sides` the pairs to train on and to
    validate, `pairs` as in `render_page`, `warnings` the stated limits that are not kept. The same input gives the same
    bytes."""
    return render(
        decision=data_decision(data, sides, warnings),
        facts={},
        requirements=[],
        figures=[],
        points=[],
        advice=warnings,
        checks=[],
        stages=[],
        plots=data_plots(data),
        data=data_figures(data, people),
        characters=characters(data),
        training={},
        pairs=_examples(pairs, _pair, data.get("pairs")),
        comparisons=_examples((), _comparison),
        source="Made of judged.jsonl, train.jsonl and val.jsonl.",
    )


def render(**sections: Any) -> str:
    """The page with these sections, all of which it must be given."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["dialogue"] = _dialogue
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(sections)


def run_plots(summary: Summary, steps: Sequence[Row]) -> list[Plot]:
    """The plots of a run, those that there is something for."""
    made: list[Plot] = []
    win, served, training = (summary.get(key) or {} for key in ("win_rate", "win_rate_served", "training"))
    estimates = {
        label: (figures[value], figures[interval])
        for label, figures, value, interval in (
            ("win rate", win, "value", "ci"),
            ("win rate, served", served, "value", "ci"),
            ("accuracy", training, "eval_accuracy", "eval_accuracy_ci"),
        )
        if figures.get(value) is not None and figures.get(interval)
    }
    if estimates:
        made.append(
            Plot(
                "Win rate and accuracy",
                plots.intervals(estimates),
                "With 95 % intervals. One that lies wholly above 0.5 is better than chance.",
            )
        )
    if any("loss" in row or "eval_loss" in row for row in steps):
        made.append(
            Plot(
                "Training",
                plots.training(steps, start_loss(summary)),
                "The dashed lines are where training starts: the loss of the reference itself, no margin.",
            )
        )
    return [*made, *data_plots(summary.get("data") or {})]


def _rest(training: Row) -> dict[str, str]:
    """Whatever training recorded as plain values, under its own names."""
    return {
        name.replace("_", " "): f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in training.items()
        if isinstance(value, (int, float, str))
    }


def _examples(rows: Sequence[Row], example: Callable[[Row], Example], total: int | None = None) -> Examples:
    """Evenly taken from the rows, which may be a sample of a larger `total`."""
    count = min(len(rows), MOST_EXAMPLES)
    shown: list[Example] = []
    size = 0
    for i in range(count):
        one = example(rows[i * len(rows) // count])
        size += len(str(escape(str(one))).encode())
        if shown and size > _MOST_BYTES:
            break
        shown.append(one)
    return Examples(shown, max(len(rows), total or 0))


def _pair(row: Row) -> Example:
    return Example(
        _messages(row["prompt"]), _text(row["chosen"]), _text(row["rejected"]), "", _reasons(row.get("reasons"))
    )


def _comparison(row: Row) -> Example:
    outcome = {1: "win", 0: "loss"}.get(row["score"], "tie")
    return Example(
        _messages(row["prompt"]),
        _text(row["candidate"]),
        _text(row["reference"]),
        outcome,
        _reasons(row.get("reasons")),
    )


def _reasons(reasons: Sequence[str] | None) -> list[str]:
    return [_text(reason) for reason in reasons or () if reason]


def _messages(messages: Sequence[Row]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": _text(message["content"])} for message in messages]


def _text(value: str | Sequence[Row]) -> str:
    """A completion, given as a text or as the assistant's messages; cut where nobody would read on."""
    text = value if isinstance(value, str) else "\n".join(message["content"] for message in value)
    more = len(text) - _MOST_CHARACTERS
    return text if more <= 0 else f"{text[:_MOST_CHARACTERS]} … ({more:,} more characters)"


def _dialogue(text: str) -> Markup:
    """A text with the `[CHARACTER]` at each line's start set apart."""
    return Markup(re.sub(r"^(\[[^\]\n]{1,40}\])", r"<b>\1</b>", str(escape(text)), flags=re.MULTILINE))
