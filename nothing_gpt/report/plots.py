"""The report's plots, as SVG texts that can stand inside an HTML page, whose colours and font they take on.

Every function takes plain data; the same data give the same bytes, and pyplot's global state stays untouched.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Each becomes the fallback of a CSS variable of its name, so that a page can choose it for dark and light.
INK, MUTED, LINE = "#1b2333", "#6b7688", "#d9dee7"
CHOSEN, REJECTED, ACCENT = "#0f9d8a", "#e4633f", "#3f6fe8"
COLOURS = {"ink": INK, "muted": MUTED, "line": LINE, "chosen": CHOSEN, "rejected": REJECTED, "accent": ACCENT}

_WIDTH = 5.6  # inches: at 600 px a text of 9.5 points is about 14 px high
_MOST_POINTS = 500  # keeps the scatter plot under 60 kB
_MOST_REASONS = 10
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


class Plot(NamedTuple):
    """A plot, and the sentence that says how to read it."""

    title: str
    svg: str
    caption: str


def lengths(chosen: Sequence[int], rejected: Sequence[int]) -> str:
    """Each pair's two lengths (characters) against each other, and how both are distributed."""

    def draw(figure: Figure) -> None:
        pairs, spread = figure.subplots(1, 2, width_ratios=[1.1, 1])
        top = max(*chosen, *rejected, 1) * 1.05
        every = -(-len(chosen) // _MOST_POINTS)
        pairs.plot([0, top], [0, top], color=MUTED, linewidth=1, linestyle="--")
        pairs.scatter(rejected[::every], chosen[::every], s=9, color=ACCENT, alpha=0.45, linewidths=0)
        pairs.set(
            xlabel="rejected (characters)", ylabel="chosen (characters)", box_aspect=1, xlim=(0, top), ylim=(0, top)
        )
        edges = [top * i / 24 for i in range(25)]
        for values, colour, label in ((rejected, REJECTED, "rejected"), (chosen, CHOSEN, "chosen")):
            spread.hist(values, bins=edges, histtype="stepfilled", color=colour, alpha=0.25)
            spread.hist(values, bins=edges, histtype="step", color=colour, linewidth=1.6, label=label)
        spread.set(xlabel="characters", ylabel="pairs", xlim=(0, top))
        _legend(spread)

    return _svg("lengths", 2.9, draw)


def training(steps: Sequence[Mapping[str, Any]], start_loss: float) -> str:
    """Loss and reward margin over optimizer steps, of the training batches and of the validation pairs.

    `steps` are the trainer's log rows; `start_loss` is the loss of a policy that equals its reference (ln 2).
    """

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        for axes, name, label, level in zip(
            panels, ("loss", "rewards/margins"), ("loss", "reward margin"), (start_loss, 0.0), strict=True
        ):
            axes.axhline(level, color=MUTED, linewidth=1, linestyle="--")
            axes.plot(*_series(steps, name), color=MUTED, linewidth=1.2, label="training")
            axes.plot(*_series(steps, f"eval_{name}"), color=ACCENT, marker="o", ms=4, label="validation")
            axes.set(xlabel="step", ylabel=label)
            axes.margins(x=0.03, y=0.12)
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
            _legend(axes)

    return _svg("training", 2.9, draw)


def intervals(estimates: Mapping[str, tuple[float, Sequence[float]]]) -> str:
    """Shares as {label: (value, [low, high])} with their intervals, beside the 0.5 that chance would give."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0.5, color=INK, linewidth=1.2, linestyle="--")
        axes.text(0.5, 1.02, "chance", color=MUTED, ha="center", transform=axes.get_xaxis_transform())
        for row, (value, (low, high)) in enumerate(estimates.values()):
            colour = CHOSEN if low > 0.5 else REJECTED
            axes.plot([low, high], [row, row], color=colour, linewidth=7, alpha=0.3, solid_capstyle="round")
            axes.plot([value], [row], color=colour, marker="o", markersize=9)
        axes.set(xlim=(0, 1), ylim=(len(estimates) - 0.4, -0.6))
        names = [f"{label}\n{value:.3f} [{low:.3f}, {high:.3f}]" for label, (value, (low, high)) in estimates.items()]
        axes.set_yticks(range(len(estimates)), names, color=INK)
        _bare(axes)

    return _svg("intervals", 0.7 + 0.8 * len(estimates), draw)


def points(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sweep's rows (see `ranking.rows`), the first on top: accuracy and win rate with their intervals, cost and
    minutes. What a row lacks is left out."""
    shares, sums = (("accuracy", "accuracy"), ("win rate", "win_rate")), (("USD", "cost_usd"), ("minutes", "minutes"))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 4, sharey=True, width_ratios=[2, 2, 1, 1])
        for axes, (label, key) in zip(panels, (*shares, *sums), strict=True):
            for place, row in enumerate(rows):
                colour = MUTED if row["status"] == "left out" else CHOSEN if row["status"] == "passed" else REJECTED
                if row.get(key) is None:
                    continue
                if (label, key) in sums:
                    axes.barh(place, row[key], height=0.5, color=ACCENT, alpha=0.85)
                    continue
                if row.get(f"{key}_ci"):
                    axes.plot(row[f"{key}_ci"], [place] * 2, color=colour, linewidth=7, alpha=0.3)
                axes.plot([row[key]], [place], color=colour, marker="o", markersize=7, clip_on=False)
            axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
            if (label, key) in shares:
                axes.axvline(0.5, color=INK, linewidth=1, linestyle="--")
                axes.set(xlim=(0, 1), xticks=(0, 0.5, 1))
            else:
                axes.set_xlim(left=0)
                axes.xaxis.get_major_locator().set_params(nbins=2)
            _bare(axes)
        panels[0].set_yticks(range(len(rows)), [_short(row["point"]) for row in rows], color=INK)

    return _svg("points", 0.9 + 0.34 * len(rows), draw)


def _short(point: str, most: int = 34) -> str:
    """A point's name without its groups: `beta=0.05` for `training.beta=0.05`."""
    name = re.sub(r"\b[a-z]+\.(?=[a-z_.]+=)", "", point)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def drops(pairs: int, reasons: Mapping[str, int]) -> str:
    """How many sets became pairs, and how many were dropped for each reason, the commonest first."""
    commonest = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:_MOST_REASONS]
    bars = [
        ("pairs kept", pairs, CHOSEN),
        *((name if len(name) < 30 else f"{name:.28}…", count, REJECTED) for name, count in commonest),
    ]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        most = max(count for _, count, _ in bars) or 1
        for row, (_, count, colour) in enumerate(bars):
            axes.barh(row, count, height=0.62, color=colour, alpha=0.85)
            axes.text(count + most * 0.015, row, f"{count:,}", va="center")
        axes.set(xlim=(0, most * 1.14), ylim=(len(bars) - 0.5, -0.5))
        axes.set_yticks(range(len(bars)), [name for name, _, _ in bars], color=INK)
        _bare(axes)

    return _svg("drops", 0.75 + 0.32 * len(bars), draw)


def places(won: Mapping[str, int], expected: Mapping[str, float]) -> str:
    """Votes won by each place in the judge's list, beside what chance would give it."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        most = max(*won.values(), *expected.values(), 1)
        for row, (place, count) in enumerate(won.items()):
            axes.barh(row, count, height=0.62, color=ACCENT, alpha=0.85)
            axes.plot([expected[place]] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.2, linestyle="--")
            axes.text(max(count, expected[place]) + most * 0.015, row, f"{count:,}", va="center")
        axes.set(xlim=(0, most * 1.14), ylim=(len(won) - 0.5, -0.5))
        axes.set_yticks(range(len(won)), [f"shown as {place}" for place in won], color=INK)
        _bare(axes)

    return _svg("places", 0.75 + 0.32 * len(won), draw)


def image(svg: str) -> str:
    """A plot as a data URL, for where an image wants an address: on white, in a light page's colours."""
    w3 = "http://www.w3.org"
    whole = f'<svg xmlns="{w3}/2000/svg" xmlns:xlink="{w3}/1999/xlink" style="background: white" '
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.replace('<svg ', whole, 1).encode()).decode()}"


def _series(steps: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    rows = [row for row in steps if row.get(key) is not None and row.get("step") is not None]
    return [row["step"] for row in rows], [row[key] for row in rows]


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.99), ncols=2, handlelength=1.2, borderpad=0)


def _bare(axes: Axes) -> None:
    """Rows with labels need neither a frame at their side nor lines across."""
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _svg(name: str, height: float, draw: Callable[[Figure], None]) -> str:
    """The figure's SVG element, without what only a file of its own needs (prolog, namespaces, fixed size).

    Ids begin with the plot's name: several plots stand in one page.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own matplotlibrc must not change the report
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = name
        figure = Figure(figsize=(_WIDTH, height))
        FigureCanvasSVG(figure)
        draw(figure)
        text, none = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=none)
    _, opening, body = re.split(r"(<svg[^>]*>)", text.getvalue(), maxsplit=1)
    box = re.findall(r'viewBox="[^"]*"', opening)[0]
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)  # it would style the whole page
    body = re.sub(r'\bid="|(?<=href=")#|(?<=url\()#', lambda match: f"{match[0]}{name}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font, sans-serif)", body)
    for variable, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{variable}, {colour})")
    return f'<svg role="img" aria-label="{name}" stroke-linejoin="round" {box}>{body.rstrip()}'
