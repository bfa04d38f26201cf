"""The training benchmark's runs, as their texts name them; nothing is trained here."""

import pytest

from benchmarks.training import Measurement, row_of, settings_of
from benchmarks.workload import SHAPES, PairLengths


def test_the_two_runs_share_what_decides_the_loss() -> None:
    guide, taken_out = settings_of("guide", cuda=True, learning_rate=1e-4)
    ours, nothing = settings_of("ours", cuda=True, learning_rate=1e-4)
    for name in ("beta", "loss_type", "learning_rate", "num_train_epochs", "lr_scheduler_type", "warmup_steps"):
        assert getattr(guide, name) == getattr(ours, name)
    for settings in (guide, ours):
        assert settings.per_device_train_batch_size * settings.gradient_accumulation_steps == 16
    assert (guide.quantization, guide.precompute_ref_log_probs) == ("nf4", False)
    assert (taken_out, nothing) == ({"shared_prompts": False, "sorted_updates": False}, {})


def test_a_run_may_change_a_setting_and_take_out_a_part() -> None:
    settings, parts = settings_of("ours:per_device_train_batch_size=1,shared_prompts=off", False, 1e-4)
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == (1, 16)
    assert parts == {"shared_prompts": False}


@pytest.mark.parametrize("run", ["theirs", "ours:no_such_setting=1"])
def test_an_unknown_run_is_refused(run: str) -> None:
    with pytest.raises(ValueError, match=r"guide or ours|no_such_setting"):
        settings_of(run, False, 1e-4)


def test_a_row_holds_medians_and_the_spread() -> None:
    repeats = [Measurement(1.0, seconds, 0.69, 0.67, 1.0, "NVIDIA L4") for seconds in (3.0, 4.0, 9.0)]
    row = row_of("ours", repeats, [PairLengths(100, 50, 50)], SHAPES["cpu"])
    assert row["seconds_per_pair"] == 2.5, "5 seconds for one pair in two epochs"
    assert row["spread"] == pytest.approx(6 / 5)
    assert row["tokens_per_second"] == 120
    assert row["mfu"] is not None
