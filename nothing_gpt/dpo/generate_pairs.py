"""Stage 1: several completions of each prompt from the adapter that is to be improved.

    SERVE_URL=http://127.0.0.1:8000/v1 DPO_DATA_PATH=data/dpo python -m nothing_gpt.dpo.generate_pairs

reads `prompts.jsonl` in DPO_DATA_PATH and writes `completions.jsonl` beside it.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nothing_gpt.adapters import WEIGHTS, adapter_digest
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import EndpointSettings, Environment, SamplingSettings
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError, SpendingLimitError, exits_cleanly
from nothing_gpt.progress import say
from nothing_gpt.records import CompletionSet, read_jsonl, read_prompts
from nothing_gpt.replicas import addresses
from nothing_gpt.replies import Meter
from nothing_gpt.sampling import Sampling, SetAside
from nothing_gpt.shards import Shard, Spread
from nothing_gpt.store import open_store, reporting_disk
from nothing_gpt.vllm_admin import VLLM

STAGE = Stage("generate_pairs", 2)
UNFINGERPRINTED = {"model", *EndpointSettings.model_fields}
COMPLETIONS = "completions.jsonl"
SET_ASIDE = "set_aside.jsonl"


def generate_pairs(
    workshop: Workshop,
    prompts: Artifact,
    settings: SamplingSettings,
    service: Service,
    spread: Spread | None = None,
) -> Artifact:
    """`completions.jsonl`, one row a prompt in the prompts' order: the guide's `{prompt, completions}` and which of
    the completions were `truncated`. Prompts without usable completions are in `set_aside.jsonl`: `{prompt, reason,
    status, attempts}`. Those that failed are tried again by the next run.

    Raises:
        FatalError: no prompt has usable completions, or as `Sampling.ask`; TransientError as there.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        wanted, _ = read_prompts(workshop.file(prompts, "prompts.jsonl"))
        again = workshop.refreshed(STAGE, fingerprinted, inputs)
        with Sampling(workshop.store, settings, service, settings.num_completions, again=again) as sampling:
            sampling.ask(wanted, "generate", spread)
            counts = _write(folder, map(sampling.result, wanted))
        if not counts["rows"]:
            _, first = next(read_jsonl(folder / SET_ASIDE))
            raise FatalError(
                f"generate: none of {len(wanted)} prompts has usable completions (the first: {first['reason']}); "
                "see what the endpoint answers, and sampling.max_tokens, temperature and line_filter"
            )
        return {**counts, "usage": sampling.usage}

    fingerprinted, inputs = _fingerprinted(settings, service), {"prompts": prompts}
    return workshop.make(STAGE, fingerprinted, inputs, build)


def generate_shard(
    workshop: Workshop, prompts: Artifact, settings: SamplingSettings, service: Service, shard: Shard
) -> dict[str, Meter]:
    """Asks for what is missing of one shard, for `generate_pairs` to find in the journal; returns what all its replies
    cost, by model. It ends where its share of the spending limit does: what that leaves is the stage's to ask for.

    Raises:
        FatalError, TransientError: as `Sampling.ask`.
    """
    wanted, _ = read_prompts(workshop.file(prompts, "prompts.jsonl"))
    again = workshop.refreshed(STAGE, _fingerprinted(settings, service), {"prompts": prompts})
    with Sampling(workshop.store, settings, service, settings.num_completions, again=again, shard=shard) as sampling:
        with suppress(SpendingLimitError):
            sampling.ask(wanted.part(shard.start, shard.stop), f"generate, shard {shard.number}")
        return sampling.costs


def _fingerprinted(settings: SamplingSettings, service: Service) -> dict[str, Any]:
    return settings.model_dump(exclude=UNFINGERPRINTED) | {"answering": service.identity}


def _write(folder: Path, results: Iterable[CompletionSet | SetAside]) -> Counter[str]:
    """Writes each result into the file where it belongs, one in memory at a time, and returns the counts."""
    counts = Counter(rows=0, degenerate=0, failed=0, truncated=0, completions=0)
    with (
        (folder / COMPLETIONS).open("w", encoding="utf-8") as rows,
        (folder / SET_ASIDE).open("w", encoding="utf-8") as aside,
    ):
        for result in results:
            if isinstance(result, CompletionSet):
                counts["rows"] += 1
                counts["completions"] += len(result.completions)
                counts["truncated"] += sum(result.truncated)
                file, row = rows, {"completions": result.completions, "truncated": result.truncated}
            else:
                counts["degenerate" if result.degenerate else "failed"] += 1
                file, row = aside, {"reason": result.reason, "status": result.status, "attempts": result.attempts}
            file.write(json.dumps({"prompt": result.prompt.messages} | row, ensure_ascii=False) + "\n")
    return counts


@exits_cleanly
def main() -> None:
    """The guide's command, with the guide's variables."""
    environment = Environment()
    data = environment.dpo_data_path
    settings = SamplingSettings()
    workshop = Workshop(open_store(str(data / ".nothing-gpt")), data / ".nothing-gpt" / "work")
    prompts = workshop.adopt(Stage("prompts", 0), {"prompts.jsonl": data / "prompts.jsonl"})
    service = Service(
        lambda: environment.serve_url,
        settings.model,
        identity=_identity(environment, settings.model),
        api_key=environment.serve_api_key,
    )
    completions = generate_pairs(workshop, prompts, settings, service)
    with reporting_disk(data / COMPLETIONS):
        shutil.copyfile(workshop.file(completions, COMPLETIONS), data / COMPLETIONS)


def _identity(environment: Environment, model: str) -> str:
    """What tells the adapter that answers from others: its digest, else its path at the server, else its name.

    Raises:
        FatalError: replicas serve different ones. TransientError: one does not answer, so that this is not known.
    """
    api_key = environment.serve_api_key.get_secret_value() if environment.serve_api_key else None
    found = {}
    for url in addresses(environment.serve_url):
        root = VLLM(url, api_key).models().get(model)
        if root and (Path(root) / WEIGHTS).is_file():
            found[url] = adapter_digest(Path(root))  # one trained anew into the same folder is another one
            continue
        known = f"path {root}" if root else "name"
        say(f"{url}: {model} is known by its {known} alone; another adapter there would not be noticed")
        found[url] = root or model
    if len({*found.values()}) > 1:
        raise FatalError(f"SERVE_URL: {' and '.join(found)} serve different adapters as {model}; load the same at each")
    return found.popitem()[1]


if __name__ == "__main__":
    main()
