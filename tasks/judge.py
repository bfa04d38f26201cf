"""The judge's votes on every set of completions."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import judge as library
from tasks import stage
from tasks.place import Place


@stage("judge")
def judge(place: Place, completions: Artifact) -> Artifact:
    return library.judge(place.workshop, completions, place.settings.judge, place.judge())
