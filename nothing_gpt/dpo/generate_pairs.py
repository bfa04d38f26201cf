"""Stage 1: several completions of each prompt from the adapter that is to be improved.

    SERVE_URL=http://127.0.0.1:8000/v1 DPO_DATA_PATH=data/dpo python -m nothing_gpt.dpo.generate_pairs

reads `prompts.jsonl` in DPO_DATA_PATH and writes `completions.jsonl` beside it.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nothing_gpt.adapters import WEIGHTS, adapter_digest
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import Environment, SamplingSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import exits_cleanly
from nothing_gpt.records import CompletionSet, Prompt, read_prompts, write_jsonl
from nothing_gpt.sampling import Sampling
from nothing_gpt.store import open_store
from nothing_gpt.vllm_admin import VLLM

STAGE = Stage("generate_pairs", 1)
COMPLETIONS = "completions.jsonl"
SET_ASIDE = "set_aside.jsonl"


def generate_pairs(workshop: Workshop, prompts: Artifact, settings: SamplingSettings, service: Service) -> Artifact:
    """`completions.jsonl`, one row a prompt in the prompts' order: the guide's `{prompt, completions}` and which of
    the completions were `truncated`. Prompts without usable completions are in `set_aside.jsonl` with the reason.

    Raises:
        FatalError, TransientError: as `Sampling.ask`.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        wanted, _ = read_prompts(workshop.file(prompts, "prompts.jsonl"))
        with Sampling(workshop.store, settings, service, settings.num_completions) as sampling:
            sampling.ask(wanted, "generate")
            aside: list[dict[str, Any]] = []
            counts: Counter[str] = Counter(degenerate=0, failed=0, truncated=0, completions=0)
            rows = write_jsonl(folder / COMPLETIONS, _rows(sampling, wanted, aside, counts))
        write_jsonl(folder / SET_ASIDE, aside)
        return {"rows": rows, **counts, "usage": sampling.usage}

    fingerprinted = settings.model_dump(exclude={"model", "concurrency", "max_failed_share"})
    return workshop.make(STAGE, fingerprinted | {"answering": service.identity}, {"prompts": prompts}, build)


def _rows(
    sampling: Sampling, prompts: list[Prompt], aside: list[dict[str, Any]], counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    for prompt in prompts:
        result = sampling.result(prompt)
        if isinstance(result, CompletionSet):
            counts["completions"] += len(result.completions)
            counts["truncated"] += sum(result.truncated)
            yield {"prompt": prompt.messages, "completions": result.completions, "truncated": result.truncated}
        else:
            counts["degenerate" if result.degenerate else "failed"] += 1
            aside.append({"prompt": prompt.messages, "reason": result.reason})


@exits_cleanly
def main() -> None:
    """The guide's command, with the guide's variables."""
    environment = Environment()
    data = environment.dpo_data_path
    settings = SamplingSettings()
    api_key = environment.serve_api_key.get_secret_value() if environment.serve_api_key else None
    root = VLLM(environment.serve_url, api_key).models().get(settings.model)
    # An adapter trained anew into the same folder is another one; where its files are not at hand, its path must do.
    identity = adapter_digest(Path(root)) if root and (Path(root) / WEIGHTS).is_file() else root or settings.model
    workshop = Workshop(open_store(str(data / ".nothing-gpt")), data / ".nothing-gpt" / "work")
    prompts = workshop.adopt(Stage("prompts", 0), {"prompts.jsonl": data / "prompts.jsonl"})
    service = Service(
        lambda: environment.serve_url,
        settings.model,
        identity=identity,
        api_key=environment.serve_api_key,
    )
    completions = generate_pairs(workshop, prompts, settings, service)
    shutil.copyfile(workshop.file(completions, COMPLETIONS), data / COMPLETIONS)


if __name__ == "__main__":
    main()
