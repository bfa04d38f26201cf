"""What a run summary says: the decision and the figures."""

import pytest

from nothing_gpt.report.summary import decision, duration, facts, key_figures, moment, stage_lines
from tests.report import samples


def test_a_promoted_adapter_is_named_with_its_version() -> None:
    result = decision(samples.full_summary())
    assert result.tone == "good"
    assert result.headline == "Promoted: the new adapter is served as seinfeld"
    assert result.details == ("version 3, fingerprint 4be1c90d27f3a6e8",)


def test_a_failed_gate_counts_its_unmet_requirements() -> None:
    result = decision(samples.failed_gate_summary())
    assert (result.tone, result.headline) == ("bad", "Not promoted: the gate failed on 2 of 3 requirements")


def test_an_error_that_only_repeats_the_gate_s_reasons_is_not_said_twice() -> None:
    summary = samples.failed_gate_summary()
    unmet = "; ".join(reason["text"] for reason in summary["gate"]["reasons"] if not reason["passed"])
    assert decision(summary | {"error": f"gate: {unmet}"}).details == ("The adapter that was served serves on.",)
    assert decision(summary | {"error": "the disk is full"}).details == ("the disk is full",)


def test_a_passed_gate_without_promotion_is_not_called_a_success() -> None:
    result = decision(samples.full_summary() | {"promoted": None, "error": "the smoke test failed"})
    assert result.tone == "open"
    assert "the gate passed" in result.headline
    assert result.details == ("the smoke test failed",)


def test_a_run_that_waits_for_a_person_says_until_when_and_one_that_was_approved_by_whom() -> None:
    summary = samples.full_summary() | {"promoted": None, "waits_until": "2031-05-07T10:15:00+00:00"}
    assert decision(summary).headline == "Waiting for approval: the gate passed"
    assert decision(summary).details == ("until 2031-05-07 10:15 UTC",)
    approved = samples.full_summary() | {"approval": {"by": "Ada", "reason": "funnier", "at": 0.0}}
    assert decision(approved).details[-1] == "approved by Ada: funnier"


def test_a_rejection_is_no_failure_of_the_gate() -> None:
    summary = samples.full_summary() | {"promoted": None, "error": "approval: rejected by Ada: stale jokes"}
    summary["stages"]["approval"] = {"status": "failed"}
    result = decision(summary)
    assert (result.tone, result.headline) == ("bad", "Not promoted: the gate passed, but it was not approved")
    assert result.details == ("approval: rejected by Ada: stale jokes",)


def test_a_run_stopped_early_says_after_which_stage() -> None:
    assert decision(samples.pairs_only_summary()).headline == "Not promoted: the run ended after pairs"


def test_a_failed_run_says_in_which_stage_and_why() -> None:
    result = decision(samples.crashed_summary())
    assert result.headline == "Not promoted: the run failed in generate"
    assert result.details[0].startswith("127.0.0.1:8000 refuses")


def test_an_empty_summary_is_a_run_that_did_nothing() -> None:
    assert decision({}).headline == "Not promoted: the run ended before its first stage"
    assert key_figures({}) == stage_lines({}) == []
    assert facts({}) == {}


def test_figures_carry_their_intervals() -> None:
    figures = {figure.label: figure for figure in key_figures(samples.full_summary())}
    assert (figures["Win rate"].value, figures["Win rate"].interval) == ("0.848", "[0.742, 0.922]")
    assert figures["Win rate"].span == (0.742, 0.848, 0.922)
    assert figures["Validation margin"].span is None
    assert figures["Preference pairs"].note == "235 training, 64 validation"


def test_an_unknown_cost_is_left_out() -> None:
    summary = samples.full_summary() | {"cost": {"judge": 0.2, "gpu": None, "total": None}}
    assert "Cost" not in [figure.label for figure in key_figures(summary)]


def test_stages_keep_their_order_and_share_the_whole_time() -> None:
    lines = stage_lines(samples.full_summary())
    assert [line.name for line in lines] == list(samples.SECONDS)
    assert sum(line.share for line in lines) == pytest.approx(1)
    assert (lines[4].time, lines[4].rows, lines[6].rows) == ("1 min 36 s", "336", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.04, "0.0 s"), (59.96, "1 min 00 s"), (95, "1 min 35 s"), (3720, "1 h 02 min")]
)
def test_durations_read_as_a_person_would_say_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_time_that_is_no_iso_time_is_shown_as_it_is() -> None:
    assert moment("2031-05-04T10:15:00+02:00") == "2031-05-04 10:15 UTC+02:00"
    assert moment("yesterday") == "yesterday"
