"""The figures that finished artifacts hold."""

import json
from typing import Any

from nothing_gpt.artifacts import Artifact, Workshop


def training_metrics(workshop: Workshop, candidate: Artifact) -> dict[str, Any]:
    """What training measured (see `dpo/train.py`)."""
    return json.loads(workshop.file(candidate, "metrics.json").read_bytes())


def evaluation_metrics(workshop: Workshop, evaluation: Artifact) -> dict[str, Any]:
    """What the comparison measured (see `dpo/evaluate.py`)."""
    return json.loads(workshop.file(evaluation, "metrics.json").read_bytes())


def quality_figures(workshop: Workshop, pairs: Artifact) -> dict[str, Any]:
    """The data report (see `quality.py`)."""
    return json.loads(workshop.file(pairs, "quality.json").read_bytes())
