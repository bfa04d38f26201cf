"""The Markdown summary that Prefect shows."""

import pytest

from nothing_gpt.report.markdown import markdown
from tests.report import samples


def test_the_decision_is_the_first_line() -> None:
    assert markdown(samples.full_summary()).startswith("# ✅ Promoted: the new adapter is served as seinf")
    assert markdown(samples.failed_gate_summary()).startswith("# ❌ Not promoted: the gate failed on 2 of 3")


def test_figures_and_stages_are_tables() -> None:
    text = markdown(samples.full_summary())
    assert "| Win rate | 0.848 | \\[0.742, 0.922\\] | 64 held-out prompts |" in text
    assert "| train | ran | 1 min 36 s | 336 |" in text
    assert "| votes disagree | 25 |" in text


def test_texts_can_neither_break_a_table_nor_bring_markup() -> None:
    stages = {"x|y": {"status": "ran", "seconds": 1.0, "rows": 1}}
    text = markdown({"error": "a | b\n# <script>", "stages": stages})
    assert "a \\| b \\# \\<script\\>" in text
    assert "| x\\|y | ran |" in text


def test_a_run_that_is_tracked_online_has_a_link_there() -> None:
    summary = samples.full_summary()
    assert "Weights & Biases" not in markdown(summary)
    summary["training"]["wandb"] = "https://wandb.ai/me/nothing-gpt/runs/0123"
    assert "(<https://wandb.ai/me/nothing-gpt/runs/0123>)" in markdown(summary)


@pytest.mark.parametrize("summary", [{}, samples.crashed_summary(), samples.pairs_only_summary()])
def test_what_is_missing_is_left_out(summary: dict) -> None:
    text = markdown(summary)
    assert "Not promoted" in text
    assert "None" not in text
