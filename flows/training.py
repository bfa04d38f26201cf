"""Training alone: any `train.jsonl`, `val.jsonl` and adapter in, a trained adapter out. Nothing is promoted.

What it is given is adopted into the store by its content, so that the same training a second time is answered from
there, and an interrupted one goes on.
"""

from pathlib import Path
from typing import Any

from prefect import flow

from nothing_gpt.adapters import CONFIG, WEIGHTS, validate_adapter
from nothing_gpt.artifacts import Artifact, Stage
from nothing_gpt.bases import known_base
from nothing_gpt.config import PlaceSettings, Settings, TrainingSettings
from nothing_gpt.dpo.train import refuse_version
from nothing_gpt.preferences import read_pairs
from nothing_gpt.results import training_metrics
from tasks.image import image
from tasks.place import GKEPlace, Models, Place, make_place
from tasks.train import train

GIVEN_PAIRS = Stage("given-pairs", 1)
GIVEN_ADAPTER = Stage("given-adapter", 1)


@flow(name="training", validate_parameters=True)
def training_pipeline(
    data: Path, adapter: Path, training: TrainingSettings = TrainingSettings(), place: PlaceSettings = PlaceSettings()
) -> dict[str, Any]:
    """Trains the adapter in one folder on the pairs in another. The base model is `place.base_model`, else the one that
    the adapter names.

    Returns the `metrics`, the `folder` of the trained adapter, and whether it was `reused`.

    Raises:
        FatalError: bad pairs or a bad adapter, or as the training stage; TransientError as this.
    """
    refuse_version(training)
    for name in ("train.jsonl", "val.jsonl"):
        read_pairs(data / name)
    base = known_base(place.base_model or validate_adapter(adapter).base, place.base_revision)
    with make_place(Settings(training=training, place=place)) as engines:
        if isinstance(engines, GKEPlace):
            image(engines)
        start = engines.workshop.adopt(GIVEN_ADAPTER, {name: adapter / name for name in (CONFIG, WEIGHTS)})
        trained: Artifact = train(
            engines, Models(base, start), _adopted_pairs(engines, data), return_state=True
        ).result()
        return {
            "metrics": training_metrics(engines.workshop, trained),
            "folder": str(engines.workshop.folder(trained)),
            "reused": trained.reused,
        }


def _adopted_pairs(place: Place, data: Path) -> Artifact:
    """The pairs, with the report on them where there is one: label smoothing may be measured in it."""
    files = {name: data / name for name in ("train.jsonl", "val.jsonl", "quality.json")}
    return place.workshop.adopt(GIVEN_PAIRS, {name: file for name, file in files.items() if file.is_file()})
