"""The judge's votes on every set of completions."""

from functools import partial

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo import judge as library
from nothing_gpt.judging import read_rubric
from tasks import stage
from tasks.place import Place
from tasks.shards import JUDGE_KEY, spread
from tasks.shown import counted


@stage(
    "judge",
    uses=["judge"],
    numbers=lambda place, completions: (
        f"{counted(place.workshop, completions, 'sets')} · {place.settings.judge.votes} votes"
    ),
)
def judge(place: Place, completions: Artifact) -> Artifact:
    settings, service = place.settings.judge, place.judge()
    work = partial(library.judge_shard, rubric=read_rubric(settings.rubric))
    shards = spread(place, "judge", work, completions, settings, service, JUDGE_KEY)
    return library.judge(place.workshop, completions, settings, service, shards)
