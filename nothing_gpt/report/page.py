"""One HTML page that holds everything about a run, the decision first, and needs nothing outside itself.

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
from nothing_gpt.report.summary import decision, facts, key_figures, stage_lines

TEMPLATE = Path(__file__).with_name("page.html.jinja")
MOST_EXAMPLES = 50
# 50 pairs and 50 comparisons of ordinary length take about 300 kB; of very long ones fewer are shown.
_MOST_BYTES = 450_000
_MOST_CHARACTERS = 4_000  # of one text; a completion is a tenth of it

Row = Mapping[str, Any]


class Plot(NamedTuple):
    """A plot, and the sentence that says how to read it."""

    title: str
    svg: Markup
    caption: str


class Example(NamedTuple):
    """A prompt and two answers to it."""

    prompt: list[dict[str, str]]
    left: str
    right: str
    outcome: str = ""
    reasons: Sequence[str] = ()


class Examples(NamedTuple):
    """The examples shown, taken evenly from all there are."""

    shown: list[Example]
    total: int


def render_page(
    summary: Summary, steps: Sequence[Row] = (), pairs: Sequence[Row] = (), comparisons: Sequence[Row] = ()
) -> str:
    """The report as HTML. What the summary or the details lack is left out.

    `steps` are the trainer's log rows, `pairs` rows `{prompt, chosen, rejected}` of TRL's format, and
    `comparisons` rows `{prompt, reference, candidate, score, reasons}` of `evaluate`. The same input gives
    the same bytes.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["dialogue"] = _dialogue
    data, training, gate = (summary.get(key) or {} for key in ("data", "training", "gate"))
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        decision=decision(summary),
        facts=facts(summary),
        reasons=gate.get("reasons") or [],
        figures=key_figures(summary),
        advice=advice(summary),
        checks=training_checks(summary),
        stages=stage_lines(summary),
        plots=_plots(summary, steps),
        quality=_quality(data),
        characters=_characters(data),
        training=_rest(training),
        pairs=_examples(pairs, _pair),
        comparisons=_examples(comparisons, _comparison),
    )


def _plots(summary: Summary, steps: Sequence[Row]) -> list[Plot]:
    made: list[Plot] = []
    win, training, data = (summary.get(key) or {} for key in ("win_rate", "training", "data"))
    estimates = {
        label: (figures[value], figures[interval])
        for label, figures, value, interval in (
            ("win rate", win, "value", "ci"),
            ("accuracy", training, "eval_accuracy", "eval_accuracy_ci"),
        )
        if figures.get(value) is not None and figures.get(interval)
    }
    if estimates:
        made.append(
            Plot(
                "Win rate and accuracy",
                Markup(plots.intervals(estimates)),
                "With 95 % intervals. One that lies wholly above 0.5 is better than chance.",
            )
        )
    if any("loss" in row or "eval_loss" in row for row in steps):
        made.append(
            Plot(
                "Training",
                Markup(plots.training(steps, start_loss(summary))),
                "The dashed lines are where training starts: the loss of the reference itself, no margin.",
            )
        )
    if data.get("chosen_lengths"):
        made.append(
            Plot(
                "Length of chosen against rejected",
                Markup(plots.lengths(data["chosen_lengths"], data["rejected_lengths"])),
                "Above the dashed line the chosen completion is the longer one.",
            )
        )
    if data.get("pairs") is not None:
        made.append(
            Plot(
                "Kept and dropped",
                Markup(plots.drops(data["pairs"], data.get("drops") or {})),
                "Sets that became pairs, and sets that were dropped, by reason.",
            )
        )
    return made


def _quality(data: Row) -> dict[str, str]:
    """The data figures as text, by label."""
    shown = {
        "Sets judged": ("judged_sets", ",d"),
        "Judge's agreement": ("agreement", ".3f"),
        "Sets with a tie": ("tie_share", ".3f"),
        "Longer one chosen": ("longer_chosen", ".3f"),
        "p of this without length bias": ("longer_chosen_p", ".2g"),
        "Chosen − rejected, characters": ("length_gap", "+.1f"),
    }
    figures = {label: format(data[key], form) for label, (key, form) in shown.items() if data.get(key) is not None}
    places = data.get("best_by_position") or {}
    if places:
        figures[f"Best was shown as number {' / '.join(places)}"] = " / ".join(map(str, places.values()))
    return figures


def _characters(data: Row) -> list[tuple[str, int, int, float, float]]:
    """(name, lines in chosen, lines in rejected, both as shares of the longest bar), most lines first."""
    chosen, rejected = data.get("characters_chosen") or {}, data.get("characters_rejected") or {}
    names = sorted(
        chosen.keys() | rejected.keys(), key=lambda name: (-chosen.get(name, 0) - rejected.get(name, 0), name)
    )
    most = max([1, *chosen.values(), *rejected.values()])
    counts = [(name, chosen.get(name, 0), rejected.get(name, 0)) for name in names[:12]]
    return [(name, left, right, left / most, right / most) for name, left, right in counts]


def _rest(training: Row) -> dict[str, str]:
    """Whatever training recorded as plain values, under its own names."""
    return {
        name.replace("_", " "): f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in training.items()
        if isinstance(value, (int, float, str))
    }


def _examples(rows: Sequence[Row], example: Callable[[Row], Example]) -> Examples:
    count = min(len(rows), MOST_EXAMPLES)
    shown: list[Example] = []
    size = 0
    for i in range(count):
        one = example(rows[i * len(rows) // count])
        size += len(str(escape(str(one))).encode())
        if shown and size > _MOST_BYTES:
            break
        shown.append(one)
    return Examples(shown, len(rows))


def _pair(row: Row) -> Example:
    return Example(_messages(row["prompt"]), _text(row["chosen"]), _text(row["rejected"]))


def _comparison(row: Row) -> Example:
    outcome = {1: "win", 0: "loss"}.get(row["score"], "tie")
    return Example(
        _messages(row["prompt"]),
        _text(row["candidate"]),
        _text(row["reference"]),
        outcome,
        [_text(reason) for reason in row.get("reasons") or [] if reason],
    )


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
