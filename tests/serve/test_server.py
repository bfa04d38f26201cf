"""The vLLM command: an adapter under the stable name, at the next rank that vLLM knows."""

import json
from pathlib import Path

import pytest

from nothing_gpt.errors import FatalError
from nothing_gpt.serve.server import command


def adapter(folder: Path, rank: int) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return folder


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (4, 8), (16, 16), (24, 32), (512, 512)])
def test_it_serves_an_adapter_with_the_next_rank_up(tmp_path: Path, rank: int, served: int) -> None:
    line = command("base", adapter(tmp_path, rank), "seinfeld")
    assert f"--max-lora-rank={served}" in line
    assert json.loads(line[line.index("--lora-modules") + 1]) == {"name": "seinfeld", "path": str(tmp_path)}


def test_a_module_with_a_larger_rank_of_its_own_counts(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "rank_pattern": {"q_proj": 24}}))
    assert "--max-lora-rank=32" in command("base", tmp_path, "seinfeld")


def test_a_rank_above_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="rank 600 is above 512"):
        command("base", adapter(tmp_path, 600), "seinfeld")


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="check ADAPTER_PATH"):
        command("base", tmp_path, "seinfeld")
