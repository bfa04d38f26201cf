"""Preference pairs and the report on them."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import pairs as library
from tasks import stage
from tasks.place import Place
from tasks.shown import counted


@stage("pairs", numbers=lambda place, completions, judged: counted(place.workshop, judged, "judged sets"))
def pairs(place: Place, completions: Artifact, judged: Artifact) -> Artifact:
    return library.pairs(place.workshop, completions, judged, place.settings.judge)
