"""Stage 0: the prompts, each once, split into those that make pairs and those held out for the comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import PromptsSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.records import file_digest, read_prompts, share, write_jsonl

STAGE = Stage("prompts", 1)
PROMPTS = "prompts.jsonl"
TEST = "test.jsonl"


def prompts(workshop: Workshop, path: Path, settings: PromptsSettings) -> Artifact:
    """Reads a prompts file into the store: `prompts.jsonl` for pairs, `test.jsonl` held out.

    Raises:
        FatalError: the file is missing or empty, or holds a line that is no prompt; or one side of the split is empty.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        found, duplicates = read_prompts(path)
        held_out = [share(prompt.id, settings.seed, "test") < settings.test_share for prompt in found]
        sides = {
            PROMPTS: [p for p, out in zip(found, held_out, strict=True) if not out][: settings.limit],
            TEST: [p for p, out in zip(found, held_out, strict=True) if out][: settings.test_limit],
        }
        for name, side in sides.items():
            if not side:
                raise FatalError(
                    f"{path}: {len(found)} prompts leave none for {name}; give more prompts, or change "
                    f"prompts.test_share ({settings.test_share})"
                )
            write_jsonl(folder / name, ({"prompt": prompt.messages} for prompt in side))
        return {"rows": len(sides[PROMPTS]), "test_rows": len(sides[TEST]), "duplicates": duplicates}

    if not path.is_file():
        raise FatalError(f"{path}: no such prompts file; check --prompts")
    fingerprinted = settings.model_dump(exclude={"path"}) | {"file": file_digest(path)}
    return workshop.make(STAGE, fingerprinted, {}, build)
