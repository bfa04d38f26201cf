"""What a run summary says: the decision and the key figures (what to try next is in `advice.py`). The page, the
terminal's table and Prefect's artifact all read it here, so that they never disagree.

A run summary is the plain dict that `nothing-gpt report --json` prints. Any part of it may be missing or
None: a run may have failed, or been asked to stop early.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from nothing_gpt.report.advice import Summary, start_loss


@dataclass(frozen=True)
class Decision:
    """How the run ended, in one line, and what there is to add."""

    tone: Literal["good", "bad", "open"]
    headline: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A figure as text. `span` is (low, value, high) of a share, to be drawn between 0 and 1."""

    label: str
    value: str
    interval: str = ""
    note: str = ""
    span: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class StageLine:
    """A stage as text; `share` is its part of the time of all stages, from 0 to 1."""

    name: str
    status: str
    time: str
    rows: str
    share: float


def decision(summary: Summary) -> Decision:
    """Promoted or not, and why not."""
    promoted, gate, error = (summary.get(key) for key in ("promoted", "gate", "error"))
    reasons = (gate or {}).get("reasons") or []
    unmet = [reason["text"] for reason in reasons if not reason["passed"]]
    details = (error,) if error else ()
    if promoted:
        details = (f"version {promoted['version']}, fingerprint {promoted['fingerprint']}", *details)
        if approval := summary.get("approval"):
            details = (*details, f"approved by {approval['by']}: {approval['reason']}")
        return Decision("good", f"Promoted: the new adapter is served as {promoted['name']}", details)
    if gate and not gate["passed"]:
        count = f"{len(unmet)} of {len(reasons)} requirements" if reasons else "a requirement"
        if error and unmet and all(text in error for text in unmet):
            details = ()  # the error only repeats the reasons, which are listed anyway
        return Decision(
            "bad", f"Not promoted: the gate failed on {count}", details or ("The adapter that was served serves on.",)
        )
    if waits_until := summary.get("waits_until"):
        return Decision("open", "Waiting for approval: the gate passed", (f"until {moment(waits_until)}", *details))
    if gate and ((summary.get("stages") or {}).get("approval") or {}).get("status") == "failed":
        return Decision("bad", "Not promoted: the gate passed, but it was not approved", details)
    if gate:
        return Decision("open", "Not promoted: the gate passed, but the adapter was not put into service", details)
    failed = [name for name, stage in _stages(summary) if stage.get("status") == "failed"]
    if error or failed:
        where = f" in {failed[0]}" if failed else ""
        return Decision("bad", f"Not promoted: the run failed{where}", details)
    done = [name for name, stage in _stages(summary) if stage.get("status") in ("ran", "cached")]
    where = f"after {done[-1]}" if done else "before its first stage"
    return Decision("open", f"Not promoted: the run ended {where}", ())


def key_figures(summary: Summary) -> list[Figure]:
    """The figures to look at first, those that there are, with their 95 % intervals."""
    win, training, data = (summary.get(key) or {} for key in ("win_rate", "training", "data"))
    served = summary.get("win_rate_served") or {}
    cost = summary.get("cost") or {}
    sides = [count_of(training.get("train_pairs"), "training"), count_of(training.get("val_pairs"), "validation")]
    spent = [f"{key} {dollars(price)}" for key, price in cost.items() if key != "total" and price is not None]
    figures = [
        share("Win rate", win.get("value"), win.get("ci"), count_of(win.get("n"), "held-out prompts")),
        share("Win rate, served", served.get("value"), served.get("ci"), count_of(served.get("n"), "held-out prompts")),
        share(
            "Validation accuracy",
            training.get("eval_accuracy"),
            training.get("eval_accuracy_ci"),
            count_of(training.get("val_pairs"), "pairs"),
        ),
        number("Validation margin", training.get("eval_margin"), training.get("eval_margin_ci")),
        number(
            "Loss before training", training.get("step0_loss"), note=f"{start_loss(summary):.4f} is right", digits=4
        ),
        number("Validation loss", training.get("eval_loss"), note=count_of(training.get("steps"), "steps"), digits=4),
        number("Preference pairs", data.get("pairs"), note=", ".join(filter(None, sides)), digits=0),
        share(
            "Judge's agreement",
            data.get("agreement"),
            data.get("agreement_ci"),
            count_of(data.get("judged_sets"), "sets judged"),
        ),
        share("Longer one chosen", data.get("longer_chosen"), data.get("longer_chosen_ci"), "0.5 is no length bias"),
    ]
    if cost.get("total") is not None:
        figures.append(Figure("Cost", dollars(cost["total"]), note=", ".join(spent)))
    return [figure for figure in figures if figure]


def stage_lines(summary: Summary) -> list[StageLine]:
    """The stages in the order they were run."""
    stages = _stages(summary)
    total = sum(stage.get("seconds") or 0 for _, stage in stages) or 1
    return [
        StageLine(
            name.replace("_", " "),
            stage.get("status") or "unknown",
            duration(stage.get("seconds")),
            count_of(stage.get("rows")),
            (stage.get("seconds") or 0) / total,
        )
        for name, stage in stages
    ]


def facts(summary: Summary) -> dict[str, str]:
    """What identifies the run: where, when, how long, with which seed."""
    started = summary.get("started")
    values = {
        "run": summary.get("run"),
        "place": summary.get("place"),
        "started": moment(started) if started else None,
        "took": duration(summary.get("seconds")),
        "seed": summary.get("seed"),
    }
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def duration(seconds: float | None) -> str:
    """Seconds as a person would say them; empty where unknown."""
    if seconds is None:
        return ""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def dollars(cost: float) -> str:
    """US dollars; small sums to a hundredth of a cent, since a small run's whole cost is one."""
    return f"${cost:,.2f}" if cost == 0 or cost >= 0.1 else f"${cost:.4f}"


def moment(started: str) -> str:
    """An ISO time to the minute, in the zone it was written in."""
    try:
        return datetime.fromisoformat(started).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return started


def _stages(summary: Summary) -> list[tuple[str, Mapping[str, Any]]]:
    return list((summary.get("stages") or {}).items())


def share(label: str, value: float | None, interval: list[float] | None = None, note: str = "") -> Figure | None:
    """The figure of a share from 0 to 1, drawn where it has an interval; None where the value is unknown."""
    figure = number(label, value, interval, note)
    if figure is None or value is None or interval is None:
        return figure
    return replace(figure, span=(interval[0], value, interval[1]))


def number(
    label: str, value: float | None, interval: list[float] | None = None, note: str = "", digits: int = 3
) -> Figure | None:
    """The figure of a number; None where it is unknown."""
    if value is None:
        return None
    bounds = "" if interval is None else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    return Figure(label, f"{value:,.{digits}f}", bounds, note)


def count_of(count: int | None, what: str = "") -> str:
    """A count as a person would write it; empty where it is unknown."""
    return "" if count is None else f"{count:,} {what}".rstrip()
