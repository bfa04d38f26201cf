"""The stages that the embedded place puts before the chain: sample scripts, a tiny base model, a starting adapter."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.embedded.scripts import write_scripts
from nothing_gpt.processes import Run

SCRIPTS = Stage("scripts", 1)
BASE = Stage("base", 1)
SFT = Stage("sft", 1)


def scripts(workshop: Workshop, seed: int) -> Artifact:
    """`train.jsonl`, rows `{prompt, completion}`, and `prompts.jsonl`, rows `{prompt}`, of other episodes."""

    def build(folder: Path) -> Mapping[str, Any]:
        counts = write_scripts(folder, seed)
        return {"rows": sum(counts.values()), **counts}

    return workshop.make(SCRIPTS, {"seed": seed}, {}, build)


def base(workshop: Workshop, scripts: Artifact, seed: int, run: Run) -> Artifact:
    """A tiny Llama with its tokenizer, trained from nothing on the scripts."""

    def build(folder: Path) -> Mapping[str, Any]:
        run(
            "nothing_gpt.embedded.base",
            ["--scripts", str(workshop.folder(scripts)), "--out", str(folder), "--seed", str(seed)],
            OFFLINE,
            folder / "_base.log",
        )
        return {}

    return workshop.make(BASE, {"seed": seed}, {"scripts": scripts}, build)


def sft(workshop: Workshop, scripts: Artifact, base: Artifact, seed: int, run: Run) -> Artifact:
    """The starting adapter: `adapter_config.json` and `adapter_model.safetensors`."""

    def build(folder: Path) -> Mapping[str, Any]:
        finished = folder / "_adapter"
        if not finished.exists():
            arguments = [
                "--base",
                str(workshop.folder(base)),
                "--data",
                str(workshop.file(scripts, "train.jsonl")),
                "--out",
                str(finished),
                "--seed",
                str(seed),
            ]
            run("nothing_gpt.sft.train", arguments, OFFLINE, folder / "_sft.log")
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        return {}

    return workshop.make(SFT, {"seed": seed}, {"scripts": scripts, "base": base}, build)


OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""Nothing of this place is on a hub, so nothing need be looked up there."""
