"""The judge's votes on every set of completions."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import judge as library
from tasks import stage
from tasks.place import Place
from tasks.shown import counted


@stage(
    "judge",
    uses=["judge"],
    numbers=lambda place, completions: (
        f"{counted(place.workshop, completions, 'sets')} · {place.settings.judge.votes} votes"
    ),
)
def judge(place: Place, completions: Artifact) -> Artifact:
    return library.judge(place.workshop, completions, place.settings.judge, place.judge())
