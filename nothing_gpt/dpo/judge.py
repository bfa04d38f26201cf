"""Stage 2: an LLM judge names the best and the worst completion of each prompt, in one order and in its reverse.

    OPENAI_API_KEY=... OPENAI_BASE_URL=... DPO_DATA_PATH=data/dpo python -m nothing_gpt.dpo.judge

reads `completions.jsonl` in DPO_DATA_PATH and writes beside it `judged.jsonl`, every vote, and the pairs they make:
`train.jsonl` and `val.jsonl`.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import Environment, JudgeSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import exits_cleanly
from nothing_gpt.preferences import make_pairs, pair_row, read_judged
from nothing_gpt.progress import say
from nothing_gpt.records import CompletionSet, read_sets, write_jsonl
from nothing_gpt.store import open_store
from nothing_gpt.verdicts import RUBRIC, Judging

STAGE = Stage("judge", 1)
JUDGED = "judged.jsonl"


def judge(workshop: Workshop, completions: Artifact, settings: JudgeSettings, service: Service) -> Artifact:
    """`judged.jsonl`, one row a set in the sets' order: `{prompt, completions, truncated, votes}`, or `failed` with
    the reason in place of `votes`.

    Raises:
        FatalError, TransientError: as `Judging.ask`.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        sets = read_sets(workshop.file(completions, "completions.jsonl"))
        with Judging(workshop.store, settings, service) as judging:
            judging.ask(sets, "judge")
            rows = write_jsonl(folder / JUDGED, _rows(judging, sets))
            failed = sum(isinstance(judging.votes(item), str) for item in sets)
        return {"rows": rows, "failed": failed, "usage": judging.usage}

    fingerprinted = settings.model_dump(include={"temperature", "max_tokens", "votes", "seed"})
    return workshop.make(
        STAGE, fingerprinted | {"judge": service.identity, "rubric": RUBRIC}, {"completions": completions}, build
    )


def _rows(judging: Judging, sets: list[CompletionSet]) -> Iterator[dict[str, Any]]:
    for item in sets:
        row = {"prompt": item.prompt.messages, "completions": item.completions, "truncated": item.truncated}
        votes = judging.votes(item)
        yield row | ({"failed": votes} if isinstance(votes, str) else {"votes": [asdict(vote) for vote in votes]})


@exits_cleanly
def main() -> None:
    """The guide's command, with the guide's variables."""
    environment = Environment()
    data = environment.dpo_data_path
    settings = JudgeSettings() if environment.judge_model is None else JudgeSettings(model=environment.judge_model)
    workshop = Workshop(open_store(str(data / ".nothing-gpt")), data / ".nothing-gpt" / "work")
    completions = workshop.adopt(Stage("generate_pairs", 0), {"completions.jsonl": data / "completions.jsonl"})
    service = Service(lambda: environment.openai_base_url, settings.model, settings.model, environment.openai_api_key)
    judged = judge(workshop, completions, settings, service)
    shutil.copyfile(workshop.file(judged, JUDGED), data / JUDGED)
    pairs = make_pairs(read_judged(data / JUDGED), settings.val_ratio, settings.seed)
    write_jsonl(data / "train.jsonl", map(pair_row, pairs.train))
    write_jsonl(data / "val.jsonl", map(pair_row, pairs.val))
    say(f"{len(pairs.train)} pairs to train on, {len(pairs.val)} to validate; dropped: {dict(pairs.drops)}")


if __name__ == "__main__":
    main()
