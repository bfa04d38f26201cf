"""The benchmark of size: a stage without HTTP does what it does with it, and limits that are not kept are named."""

import json

import pytest

from benchmarks import scale


def test_it_prints_each_size_and_last_of_all_one_line_of_json(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "SIMULATED_ROWS", 20_000)
    scale.main(["--rows", "12", "--in-process"])
    said = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [size["rows"] for size in said["sizes"]] == [12]
    assert said["sizes"][0]["written_per_kept"] == 1.0 or said["sizes"][0]["segments"] > 1
    assert 0 < said["simulated_growth_mib"] < 10
    assert said["broken"] == []


SIZE = {
    "rows": 10_000, "s_per_1000": 1.0, "cpu_s_per_1000": 0.2, "peak_mib": 80.0, "listings": 3, "segments": 9,
    "written_per_kept": 2.0, "resume_s": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, []),
        ({"s_per_1000": 1.3}, ["s_per_1000 between 1.0 and 1.3"]),
        ({"cpu_s_per_1000": 0.1}, ["cpu_s_per_1000 between 0.1 and 0.2"]),
        ({"peak_mib": 281.0}, ["peak_mib at 100,000 rows is 281.0, and at 10,000 80.0"]),
        ({"resume_s": 31.0}, ["resume_s at 100,000 rows is 31.0"]),
        ({"listings": 9}, ["listings at 100,000 rows is 9"]),
        ({"written_per_kept": 3.0}, ["written_per_kept at 100,000 rows is 3.0"]),
    ],
)
def test_a_limit_that_is_not_kept_is_named(changed: dict[str, float], named: list[str]) -> None:
    start = SIZE | {"rows": 1_000, "s_per_1000": 6.0}  # below the sizes that are compared
    assert scale.broken([start, SIZE, SIZE | {"rows": 100_000} | changed]) == named
