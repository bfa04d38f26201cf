"""The decision whether the candidate may be promoted. Never cached."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import gate as library
from nothing_gpt.dpo.gate import Decision
from nothing_gpt.results import evaluation_metrics, quality_figures, training_metrics
from tasks import stage
from tasks.place import Place


@stage("gate")
def gate(place: Place, pairs: Artifact, candidate: Artifact, evaluation: Artifact) -> Decision:
    workshop = place.workshop
    return library.gate(
        training_metrics(workshop, candidate),
        evaluation_metrics(workshop, evaluation),
        quality_figures(workshop, pairs),
        place.settings.gate,
    )
