"""Stage 2: LLM judges name the best and the worst completion of each prompt, in one order and in its reverse.

    OPENAI_API_KEY=... OPENAI_BASE_URL=... DPO_DATA_PATH=data/dpo python -m nothing_gpt.dpo.judge

reads `completions.jsonl` in DPO_DATA_PATH and writes beside it `judged.jsonl`, every vote, and the pairs they make:
`train.jsonl` and `val.jsonl`. JUDGE_MODEL names another judge. What the votes agree on is decided in `preferences.py`.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import Environment, JudgeSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError, SpendingLimitError, exits_cleanly
from nothing_gpt.failures import Failure
from nothing_gpt.judging import NO_CHOICE, Judging, read_rubric
from nothing_gpt.preferences import JudgedSet, read_judged, write_pairs
from nothing_gpt.progress import say
from nothing_gpt.records import digest, read_sets, write_jsonl
from nothing_gpt.replies import Meter
from nothing_gpt.shards import Shard, Spread
from nothing_gpt.store import FolderStore, open_store

STAGE = Stage("judge", 2)
FINGERPRINTED = {"temperature", "max_tokens", "votes", "panel", "repeat_share", "seed"}
JUDGED = "judged.jsonl"


def judge(
    workshop: Workshop,
    completions: Artifact,
    settings: JudgeSettings,
    service: Service,
    spread: Spread | None = None,
) -> Artifact:
    """`judged.jsonl`, one row a set in the sets' order: `{prompt, completions, truncated, votes, repeats}`, and where
    votes are missing `failed` with the reason, the last refusal's HTTP `status` and the `attempts`. Those that failed
    are tried again by the next run.

    Raises:
        FatalError, TransientError: as `Judging.ask`.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        sets = read_sets(workshop.file(completions, "completions.jsonl"))
        again = workshop.refreshed(STAGE, fingerprinted, inputs)
        with Judging(workshop.store, settings, service, again) as judging:
            judging.ask(sets, "judge", spread)
            failed = 0

            def rows() -> Iterator[dict[str, Any]]:
                nonlocal failed
                for judged in map(judging.result, sets):
                    failed += judged.failed not in (None, NO_CHOICE)
                    yield _row(judged, judging.failure(judged.item) if judged.failed else None)

            count = write_jsonl(folder / JUDGED, rows())
        return {"rows": count, "failed": failed, "usage": judging.usage}

    fingerprinted = _fingerprinted(settings, service, read_rubric(settings.rubric))
    inputs = {"completions": completions}
    return workshop.make(STAGE, fingerprinted, inputs, build)


def judge_shard(
    workshop: Workshop, completions: Artifact, settings: JudgeSettings, service: Service, shard: Shard, rubric: str
) -> dict[str, Meter]:
    """Asks for the votes that are missing on one shard of the sets, for `judge` to find in the journal; returns what
    all its votes cost, by model. It ends where its share of the spending limit does: what that leaves is the stage's to
    ask for. `rubric` is the text, whose file may be on another machine.

    Raises:
        FatalError, TransientError: as `Judging.ask`.
    """
    sets = read_sets(workshop.file(completions, "completions.jsonl"))
    fingerprinted = _fingerprinted(settings, service, rubric)
    again = workshop.refreshed(STAGE, fingerprinted, {"completions": completions})
    with Judging(workshop.store, settings, service, again, shard, rubric) as judging:
        with suppress(SpendingLimitError):
            judging.ask(sets.part(shard.start, shard.stop), f"judge, shard {shard.number}")
        return judging.costs


def _fingerprinted(settings: JudgeSettings, service: Service, rubric: str) -> dict[str, Any]:
    return settings.model_dump(include=FINGERPRINTED) | {"judge": service.identity, "rubric": digest(rubric)}


def _row(judged: JudgedSet, failure: Failure | None) -> dict[str, Any]:
    item = judged.item
    return {
        "prompt": item.prompt.messages,
        "completions": item.completions,
        "truncated": item.truncated,
        "votes": [vars(vote) for vote in judged.votes],
        "repeats": [vars(vote) for vote in judged.repeats],
        **({"failed": failure.reason, "status": failure.status, "attempts": failure.attempts} if failure else {}),
    }


@exits_cleanly
def main() -> None:
    """The guide's command, with the guide's variables."""
    environment = Environment()
    data = environment.dpo_data_path
    settings = JudgeSettings(model=environment.judge_model) if environment.judge_model else JudgeSettings()
    workshop = Workshop(open_store(str(data / ".nothing-gpt")), data / ".nothing-gpt" / "work")
    completions = workshop.adopt(Stage("generate_pairs", 0), {"completions.jsonl": data / "completions.jsonl"})
    service = Service(lambda: environment.openai_base_url, settings.model, settings.model, environment.openai_api_key)
    judged = judge(workshop, completions, settings, service)
    votes = workshop.file(judged, JUDGED)
    try:
        FolderStore(data).upload(votes, JUDGED)
        split = write_pairs(read_judged(votes), data, settings)
    except OSError as error:
        raise FatalError(
            f"{error.filename2 or error.filename}: cannot be written ({error.strerror}); make room for it and run "
            "again: the votes are kept"
        ) from None
    say(f"{split.train} pairs to train on, {split.val} to validate; dropped: {dict(split.drops)}")


if __name__ == "__main__":
    main()
