"""The flows as a test's deployment finds them: they train nothing, and a Job is done here, at once. Nothing that
training needs can be imported, as in the worker's image.
"""

import sys
from functools import partial
from pathlib import Path

from flows.dpo import dpo_pipeline
from flows.sweep import dpo_sweep
from nothing_gpt.dpo.order import fulfil
from nothing_gpt.dpo.train import train
from tasks.place import GKEPlace, Place
from tests.flows.fakes import Trainer

__all__ = ["dpo_pipeline", "dpo_sweep"]


def do_job(self: GKEPlace, fingerprint: str) -> None:
    """What the Job's pod does, with a disk of its own."""
    work = Path(self.settings.place.data) / "pod"
    fulfil(self.workshop.store.uri, fingerprint, work, partial(train, run=Place.run))


for package in ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "bitsandbytes"):
    assert sys.modules.get(package) is None, package
    sys.modules[package] = None  # type: ignore[assignment]
Place.run = staticmethod(Trainer())
GKEPlace.run_job = do_job
