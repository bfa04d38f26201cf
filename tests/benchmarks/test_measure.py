"""A benchmark measures a real stage in its own process; how long things take is nowhere tested."""

import json

import pytest

from benchmarks.faults import outcome
from benchmarks.measure import Run, figures, main


@pytest.mark.parametrize(("stage", "requests"), [("generation", 12), ("judging", 24)])
def test_it_prints_its_figures_as_one_line_of_json_last(
    stage: str, requests: int, capfd: pytest.CaptureFixture[str]
) -> None:
    main(stage, 8, ["--prompts", "12", "--latency", "0.01"])  # type: ignore[arg-type]
    said = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert said["requests"] == requests
    assert said["most_in_flight"] <= 1.25 * 8
    assert min(said["cpu_s"], said["peak_mib"], said["cached_s"], said["restart_s"]) > 0


def test_the_ideal_is_all_drawn_latency_spread_evenly_over_the_slots() -> None:
    served = {
        "work_s": 64.0, "serve_s": 2.1, "requests": 1, "sequences": 1, "most_in_flight": 1, "endpoint_cpu_s": 0.0
    }  # fmt: skip
    took = figures(Run(0, 3.0, 1.0, {}, ""), served, slots=32)
    assert (took["ideal_s"], took["over_ideal"]) == (2.0, 0.05)


def test_without_an_artifact_every_row_is_lost() -> None:
    became = outcome({"a": 1, "b": 2}, None)
    assert (became["rows"], became["lost"], became["finished"]) == (2, 2, 0)
