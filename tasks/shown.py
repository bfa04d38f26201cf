"""Artifacts: what Prefect's UI shows of a stage at work and when it is done. What cannot be shown stops no run."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.dpo.gate import Decision
from nothing_gpt.progress import watcher
from nothing_gpt.report.markdown import markdown
from nothing_gpt.report.plots import Plot, image
from nothing_gpt.report.sweep import sweep_markdown, sweep_table
from nothing_gpt.serve.registry import Version

SECONDS = 2.0
"""Between two updates; a piece of work that is done sooner shows no progress."""


def counted(workshop: Workshop, artifact: Artifact, what: str, name: str = "rows") -> str:
    """How many rows an artifact has, for a task run's name: `1,021 sets`; without a number where it is not known."""
    count = workshop.counts(artifact).get(name)
    return what if count is None else f"{count:,} {what}"


@contextmanager
def progress_shown() -> Iterator[None]:
    """Shows what `nothing_gpt.progress` counts meanwhile as progress artifacts, one a label."""
    latest: dict[str, tuple[float, str]] = {}
    done = threading.Event()

    def watch(label: str, finished: int, total: int | None, note: str) -> None:
        text = f"{label}: {finished:,}" + (f" of {total:,}" if total else "") + (f" · {note}" if note else "")
        latest[label] = (100 * finished / total if total else 0.0, text)

    def show() -> None:
        shown: dict[str, UUID] = {}
        before: dict[str, tuple[float, str]] = {}
        while True:
            ended = done.wait(SECONDS)
            for label, (percent, text) in list(latest.items()):
                if before.get(label) == (percent, text) or (ended and label not in shown):
                    continue
                before[label] = percent, text
                with suppress(Exception):
                    if label in shown:
                        update_progress_artifact(shown[label], percent, text)
                    else:
                        made: Any = create_progress_artifact(percent, f"progress-{_slug(label)}", text)
                        shown[label] = made
            if ended:
                return

    # The API is called from a thread of its own: the work counts inside an event loop, which must not wait for it.
    thread = threading.Thread(target=copy_context().run, args=(show,), daemon=True, name="progress")
    token = watcher.set(watch)
    thread.start()
    try:
        yield
    finally:
        watcher.reset(token)
        done.set()
        thread.join()


def show_result(workshop: Workshop, name: str, result: Any) -> None:
    """A table of what the stage made."""
    if isinstance(result, Decision):
        rows = [{"requirement": reason.text, "met": "yes" if reason.passed else "NO"} for reason in result.reasons]
    elif isinstance(result, Version):
        shown = {"name", "version", "fingerprint", "digest", "artifact", "place"}
        rows = _figures({key: value for key, value in vars(result).items() if key in shown})
    else:
        counts = workshop.counts(result)
        where = {"artifact": result.key, "store": result.uri, "digest": result.digest[:12]}
        rows = _figures({"status": "cached" if result.reused else "made now", **counts, **where})
    with suppress(Exception):
        create_table_artifact(rows, _slug(name), f"What {name} made")


def show_run(summary: dict[str, Any], plots: Sequence[Plot]) -> None:
    """The report, the decision first, and its plots."""
    create_markdown_artifact(markdown(summary), "dpo-report", "The run's report")
    for plot in plots:
        with suppress(Exception):
            create_image_artifact(image(plot.svg), f"plot-{_slug(plot.title)}", f"{plot.title}. {plot.caption}")


def show_sweep(summary: dict[str, Any], plots: Sequence[Plot]) -> None:
    """The sweep's report, its table and its plot."""
    create_markdown_artifact(sweep_markdown(summary), "sweep-report", "The sweep's report")
    create_table_artifact(sweep_table(summary), "sweep-points", "The sweep's points, best first")
    for plot in plots:
        with suppress(Exception):
            create_image_artifact(image(plot.svg), f"plot-{_slug(plot.title)}", f"{plot.title}. {plot.caption}")


def _figures(values: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """Nested figures as rows `{figure, value}`."""
    rows: list[dict[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _figures(value, f"{prefix}{key} ")
        elif value is not None:
            rows.append({"figure": f"{prefix}{key}".replace("_", " "), "value": value})
    return rows


def _slug(text: str) -> str:
    """A key that Prefect takes: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
