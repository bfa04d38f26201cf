"""What the learning benchmarks give the training program; nothing is trained here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks import learning
from nothing_gpt.config import TrainingSettings
from nothing_gpt.loading import load_settings


def test_the_program_is_given_its_settings_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("sft", "base"):
        (tmp_path / "store" / stage / "0123").mkdir(parents=True)
        (tmp_path / "store" / stage / "0123" / "manifest.json").write_text("{}")
    settings = TrainingSettings(beta=0.25)

    def program(module: str, arguments: Sequence[str], places: Mapping[str, str], log: Path) -> None:
        assert load_settings(Path(arguments[arguments.index("--settings") + 1])).training == settings
        assert places["DPO_DATA_PATH"] == str(tmp_path / "pairs")
        adapter = Path(places["ADAPTER_PATH"])
        adapter.mkdir()
        (adapter / "metrics.json").write_text(json.dumps({"start": places["SFT_ADAPTER_PATH"]}))

    monkeypatch.setattr(learning, "run_module", program)
    adapter = learning.trained(tmp_path, tmp_path / "pairs", settings, tmp_path)
    metrics = json.loads((adapter / "metrics.json").read_text())
    assert metrics == {"start": str(tmp_path / "store" / "sft" / "0123")}
