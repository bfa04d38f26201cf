"""Stage 3: preference pairs in TRL's format, and the report on the data they come from."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import JudgeSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.preferences import make_pairs, pair_row, read_judged
from nothing_gpt.quality import data_quality
from nothing_gpt.records import write_jsonl

STAGE = Stage("pairs", 1)
TRAIN = "train.jsonl"
VAL = "val.jsonl"
QUALITY = "quality.json"


def pairs(workshop: Workshop, completions: Artifact, judged: Artifact, settings: JudgeSettings) -> Artifact:
    """`train.jsonl` and `val.jsonl`, rows `{prompt, chosen, rejected}`, and `quality.json` (see `quality.py`).

    Raises:
        FatalError: no pair is left. (Where one side of the split is empty, it is training that refuses it.)
    """

    def build(folder: Path) -> Mapping[str, Any]:
        sets = list(read_judged(workshop.file(judged, "judged.jsonl")))
        made = make_pairs(sets, settings.val_ratio, settings.seed)
        sampled = workshop.counts(completions)
        drops = made.drops + Counter(degenerate=sampled.get("degenerate", 0), failed=sampled.get("failed", 0))
        if not made.train and not made.val:
            raise FatalError(
                f"pairs: no pair is left of {len(sets)} judged sets (dropped: {dict(drops)}); give more prompts, or "
                "another judge"
            )
        write_jsonl(folder / TRAIN, map(pair_row, made.train))
        write_jsonl(folder / VAL, map(pair_row, made.val))
        quality = data_quality(made.train + made.val, [item.votes for item in sets if item.votes], drops)
        (folder / QUALITY).write_text(json.dumps(quality, indent=1, ensure_ascii=False), encoding="utf-8")
        return {"rows": len(made.train) + len(made.val), "train": len(made.train), "val": len(made.val)}

    fingerprinted = settings.model_dump(include={"val_ratio", "seed"})
    return workshop.make(STAGE, fingerprinted, {"completions": completions, "judged": judged}, build)
