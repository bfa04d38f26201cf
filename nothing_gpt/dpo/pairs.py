"""Stage 3: preference pairs in TRL's format, and the report on the data they come from.

The votes stay in the judge's `judged.jsonl`, which the manifest's lineage names; here is what follows from them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nothing_gpt.agreement import agreement_with_people, read_labels
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.preferences import read_judged, sample_pairs, write_pairs
from nothing_gpt.progress import say
from nothing_gpt.quality import beyond_limits, measure
from nothing_gpt.records import file_digest, write_jsonl

STAGE = Stage("pairs", 2)
FINGERPRINTED = {"val_ratio", "seed"}
PEOPLE_STAGE = Stage("people", 1)
JUDGED = "judged.jsonl"
QUALITY = "quality.json"
EXAMPLES = "examples.jsonl"
PEOPLE = "people.json"
MOST_EXAMPLES = 50


def pairs(workshop: Workshop, completions: Artifact, judged: Artifact, settings: JudgeSettings) -> Artifact:
    """`train.jsonl` and `val.jsonl`, rows `{prompt, chosen, rejected}`; `quality.json` (see `quality.py`); and
    `examples.jsonl`, a seeded sample of the pairs with the judge's reasons.

    The stated limits are looked at whether the pairs are made now or were there: a limit is no part of the pairs, and
    training is not done again because one was moved.

    Raises:
        FatalError: no pair is left (where one side of the split is empty, it is training that refuses it); a stated
            limit is not kept and `judge.beyond_limits` is "fatal"; or the hand labels cannot be read. The votes stay.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        votes = workshop.file(judged, JUDGED)
        split = write_pairs(read_judged(votes), folder, settings)
        quality = measure(read_judged(votes), workshop.counts(completions), workshop.counts(judged))
        if not quality["pairs"]:
            raise FatalError(
                f"pairs: no pair is left of {quality['sets']:,} sets (dropped: {_listed(quality['drops'])}); give more "
                "prompts, or another judge"
            )
        (folder / QUALITY).write_text(json.dumps(quality, ensure_ascii=False), encoding="utf-8")
        write_jsonl(folder / EXAMPLES, sample_pairs(read_judged(votes), MOST_EXAMPLES, settings.seed))
        return {"rows": quality["pairs"], "train": split.train, "val": split.val, "drops": quality["drops"]}

    fingerprinted = settings.model_dump(include=FINGERPRINTED)
    made = workshop.make(STAGE, fingerprinted, {"completions": completions, "judged": judged}, build)
    people(workshop, judged, settings)
    warnings = beyond_limits(json.loads(workshop.file(made, QUALITY).read_bytes()), settings)
    if warnings and settings.beyond_limits == "fatal":
        raise FatalError(f"pairs: {'; '.join(warnings)} (judge.beyond_limits is fatal; the votes are kept)")
    for warning in warnings:
        say(f"warning: {warning}")
    return made


def people(workshop: Workshop, judged: Artifact, settings: JudgeSettings) -> Artifact | None:
    """`people.json`, the judge's agreement with the hand labels (see `agreement.py`), or None where there are none.

    An artifact of its own, for labels often come when the training is done, which must not be done again for them.

    Raises:
        FatalError: the file cannot be read, or holds a line that is no label.
    """
    if settings.hand_labels is None:
        return None
    path = Path(settings.hand_labels)

    def build(folder: Path) -> Mapping[str, Any]:
        found = agreement_with_people(read_judged(workshop.file(judged, JUDGED)), read_labels(path))
        (folder / PEOPLE).write_text(json.dumps(found), encoding="utf-8")
        return {"rows": found["matched"]}

    return workshop.make(PEOPLE_STAGE, {"labels": file_digest(path)}, {"judged": judged}, build)


def _listed(drops: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in drops.items()) or "none"
