"""Stage 4: DPO (Rafailov et al. 2023, arXiv 2305.18290) with TRL on one LoRA adapter.

    SFT_ADAPTER_PATH=... ADAPTER_PATH=... DPO_DATA_PATH=... python -m nothing_gpt.dpo.train [--settings FILE]...

reads `train.jsonl` and `val.jsonl` in DPO_DATA_PATH and publishes the adapter in ADAPTER_PATH, with `metrics.json`, the
validation pairs' `margins.jsonl`, the per-step log `steps.jsonl` and `tracking/` (TensorBoard, W&B) beside it. The base
is BASE_MODEL, else what the adapter names, and where that is a hub name, BASE_REVISION its commit. A Job's container
runs it with `--store gs://BUCKET/PREFIX --job FINGERPRINT [--work FOLDER]`: then it does what an order in the store
says (`order.py`), and publishes there. The policy is the starting adapter, the reference TRL's own frozen copy of it.
Before the first update the loss must be that of a policy that equals its reference: otherwise it stops. Killed or
preempted, it goes on from the newest whole checkpoint of the same run. With training.gpus or training.nodes it starts
as many processes of itself (`launcher.py`), which share each update's pairs.
"""

import signal

from nothing_gpt.errors import FatalError, TransientError, exits_cleanly, stop_at_once

if __name__ == "__main__":  # before the other imports, which take a second
    signal.signal(signal.SIGTERM, stop_at_once)

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from nothing_gpt import ranks
from nothing_gpt.adapters import METRICS, adapter_digest, base_name, check_output
from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.bases import Base, known_base
from nothing_gpt.checkpoints import Checkpoints, surviving_store
from nothing_gpt.config import Environment, TrainingSettings
from nothing_gpt.devices import taken
from nothing_gpt.dpo.order import STAGE, UNFINGERPRINTED, fingerprinted, fulfil
from nothing_gpt.dpo.recipe import Training, label_smoothing, recipe
from nothing_gpt.loading import load_settings
from nothing_gpt.processes import QUIET, Run
from nothing_gpt.progress import hush
from nothing_gpt.records import digest, file_digest
from nothing_gpt.store import open_store
from nothing_gpt.training_figures import out_of_memory

MODULE = "nothing_gpt.dpo.train"
PUBLISHED_S = 300.0
"""Longest wait of a group's other machines for the first to publish what they made together."""


def train(
    workshop: Workshop, pairs: Artifact, adapter: Artifact, base: Base, settings: TrainingSettings, run: Run
) -> Artifact:
    """The trained adapter as an artifact: a folder that PEFT and vLLM load, with `metrics.json`, `margins.jsonl` and
    `steps.jsonl`.

    Raises:
        FatalError: bad data or adapter, a wrong reference, or a loss that is not finite.
        TransientError: training was interrupted and can go on.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        finished = folder / "_adapter"
        # The trainer publishes it whole or not at all: if it is there, we were killed just after.
        if not finished.exists():
            _run_in(folder, workshop, pairs, adapter, base, settings, run)
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return {"rows": metrics["train_pairs"], "steps": metrics["steps"]}

    made = workshop.make(STAGE, fingerprinted(settings, base), {"pairs": pairs, "adapter": adapter}, build)
    Checkpoints(workshop.work, workshop.store, made.fingerprint).clear()
    return made


def take_part(
    workshop: Workshop, pairs: Artifact, adapter: Artifact, base: Base, settings: TrainingSettings, run: Run
) -> None:
    """As `train`, on another than the first machine of its group: it trains its share, makes nothing of its own, and
    ends when the first has published. A Job starts no pod anew that ended well; if the first were lost just before it
    had published, the one in its place would wait for us in vain.

    Raises:
        TransientError: the first does not publish; and as `train`.
    """
    made = workshop.fingerprint(STAGE, fingerprinted(settings, base), {"pairs": pairs, "adapter": adapter})
    if workshop.find(STAGE.name, made) is not None:
        return
    folder = workshop.work / "group" / made
    folder.mkdir(parents=True, exist_ok=True)
    _run_in(folder, workshop, pairs, adapter, base, settings, run)
    deadline = time.monotonic() + PUBLISHED_S
    while workshop.find(STAGE.name, made) is None:
        if time.monotonic() > deadline:
            raise TransientError("train: the group's first machine publishes nothing; run again to take part again")
        time.sleep(min(1, PUBLISHED_S))


def _run_in(
    folder: Path, workshop: Workshop, pairs: Artifact, adapter: Artifact, base: Base, settings: TrainingSettings,
    run: Run,
) -> None:  # fmt: skip
    """Runs the program with what it reads and writes in `folder`, which is named as the run."""
    settings_file = folder / "_settings.json"
    values = settings.model_dump(exclude={"starting_version"})  # it is `adapter`
    settings_file.write_text(json.dumps({"training": values}), encoding="utf-8")
    places = {
        "SFT_ADAPTER_PATH": str(workshop.folder(adapter)),
        "ADAPTER_PATH": str(folder / "_adapter"),
        "DPO_DATA_PATH": str(workshop.folder(pairs)),
        "BASE_MODEL": base.location,
        **({"BASE_REVISION": base.revision} if base.revision else {}),
    }
    arguments = ["--settings", str(settings_file), "--work", str(folder / "_work")]
    arguments += ["--run", folder.name, "--store", workshop.store.uri]
    with out_of_memory(settings):
        run(MODULE, arguments, places, folder / "_train.log")


@exits_cleanly
def main() -> None:
    """The program: one training, from environment variables, settings files and options, or from an order."""
    _program(sys.argv[1:])


def _in_this_process(_: str, arguments: Sequence[str], environment: Mapping[str, str], __: Path) -> None:
    """The training process as a `Run` without a process: where a container is stopped, its first one alone is told."""
    os.environ.update({**QUIET, **environment})
    _program(arguments)
    signal.signal(signal.SIGTERM, stop_at_once)  # what is left can be done again


def _program(given: Sequence[str]) -> None:
    if ranks.is_rank():
        ranks.end_with_agent()
    parser = argparse.ArgumentParser(description="DPO training of one adapter.")
    parser.add_argument("--settings", type=Path, action="append", help="YAML file of settings, such as a preset")
    parser.add_argument("--work", type=Path, help="folder for the run's own work folder; default: beside ADAPTER_PATH")
    parser.add_argument("--store", help="address of a store for copies of the checkpoints; default: none")
    parser.add_argument("--run", help="the run's name; default: the digest of its data, adapter, base and settings")
    parser.add_argument("--job", metavar="FINGERPRINT", help="do what the order in the store says, and publish there")
    arguments = parser.parse_args(given)
    if arguments.job:
        if not arguments.store:
            parser.error("--job needs --store")
        work = arguments.work or Path(tempfile.mkdtemp(prefix="nothing-gpt-"))
        part = train if ranks.is_first_machine() else take_part
        fulfil(arguments.store, arguments.job, work, partial(part, run=_in_this_process))
        return
    environment = Environment()
    settings = load_settings(arguments.settings).training
    start, output, data = environment.sft_adapter_path, environment.adapter_path, environment.dpo_data_path
    refuse_version(settings)
    base = known_base(environment.base_model or base_name(start), environment.base_revision)
    output = check_output(output, start, data, *([] if base.revision else [Path(base.location)]))
    made_of = fingerprint(start, data, base, settings)
    run = arguments.run or made_of
    if ranks.is_rank():
        if not ranks.is_first():
            hush()
    elif settings.gpus * settings.nodes > 1:
        from nothing_gpt.launcher import launch  # torch

        with taken(settings.gpus):
            code = launch([sys.executable, "-u", "-m", MODULE, *given], run, settings.gpus, settings.nodes)
        if code:
            sys.exit(code)  # why is said
        return
    work = (arguments.work or output.parent) / f".{output.name}.{run}"
    store = open_store(arguments.store) if arguments.store else None
    with nullcontext() if ranks.is_rank() else taken(1):  # TRL refuses to see more
        recipe(Training(start, data, output, base.location, base.revision, settings, made_of, work, run, store))
    if ranks.is_first() and not arguments.run:  # else who named it looks after its copies, once it has the adapter
        with surviving_store("the store's copies of the checkpoints are still there"):
            Checkpoints(work, store, run).clear()


def refuse_version(settings: TrainingSettings) -> None:
    """Raises FatalError where training alone is to start from a promoted version: it is given an adapter."""
    if settings.starting_version:
        raise FatalError(
            f"training.starting_version={settings.starting_version}: training alone starts from the adapter that it is "
            "given; leave it 0 and give that version's folder"
        )


def fingerprint(start: Path, data: Path, base: Base, settings: TrainingSettings) -> str:
    """A digest of all that decides what comes of a training: its name, where no stage gives it one."""
    return digest(
        {
            "settings": settings.model_dump(exclude=UNFINGERPRINTED)
            | {"label_smoothing": label_smoothing(settings, data)},
            "base": base.identity,
            "adapter": adapter_digest(start),
            "pairs": [file_digest(data / name) for name in ("train.jsonl", "val.jsonl")],
        }
    )[:16]


if __name__ == "__main__":
    main()
