"""Ours beside two other schemes, against the same endpoint in one run: how others send the same requests.

    python -m benchmarks.peers --prompts 1021 --latency 0.2 --slots 32

`barrier` is the guide's: 8 prompts times 3 single requests, all awaited before the next 8 are sent. `window` is a bare
sliding window with the completions of a prompt in one request and as many prompts in flight as fill the slots. Neither
keeps anything that a kill would not lose, retries as ours does, or counts.
"""

import argparse
import asyncio
import json
import math
import sys
from pathlib import Path
from typing import Any

import openai

from benchmarks.endpoint import MODEL, Pace
from benchmarks.measure import Run, figures, input_folder, pace_arguments, pace_of, run, run_stage, serving

BATCH = 8


async def barrier(client: openai.AsyncOpenAI, prompts: list[Any], completions: int, _: int) -> list[list[str]]:
    async def one(prompt: Any, seed: int) -> str:
        reply = await client.chat.completions.create(model=MODEL, messages=prompt, max_tokens=256, seed=seed)
        return reply.choices[0].message.content or ""

    texts: list[str] = []
    for begin in range(0, len(prompts), BATCH):
        batch = [one(prompt, seed) for prompt in prompts[begin : begin + BATCH] for seed in range(completions)]
        texts += await asyncio.gather(*batch)
    return [texts[i : i + completions] for i in range(0, len(texts), completions)]


async def window(client: openai.AsyncOpenAI, prompts: list[Any], completions: int, slots: int) -> list[list[str]]:
    places = asyncio.Semaphore(math.ceil(slots / completions))

    async def one(prompt: Any) -> list[str]:
        async with places:
            reply = await client.chat.completions.create(
                model=MODEL, messages=prompt, max_tokens=256, n=completions, seed=0
            )
            return [choice.message.content or "" for choice in reply.choices]

    return await asyncio.gather(*map(one, prompts))


SCHEMES = {"barrier": barrier, "window": window}


async def sample(scheme: str, folder: Path, url: str, completions: int, slots: int) -> None:
    """Reads the prompts, asks, and writes `completions.jsonl`."""
    rows = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
        texts = await SCHEMES[scheme](client, rows, completions, slots)
    pairs = zip(rows, texts, strict=True)
    written = "".join(json.dumps({"prompt": row, "completions": said}) + "\n" for row, said in pairs)
    (folder / "completions.jsonl").write_text(written)


def measured(scheme: str, prompts: int, completions: int, pace: Pace) -> dict[str, Any]:
    def done(folder: Path, url: str) -> Run:
        if scheme == "ours":
            return run_stage("generation", folder, url, pace.slots, "--completions", completions)
        return run("benchmarks.peers", "--scheme", scheme, folder, url, completions, pace.slots)

    with input_folder("generation", prompts, completions) as folder, serving(pace) as bench:
        took = done(folder, bench.url)
        if took.code:
            sys.exit(f"{scheme} failed ({took.code}): {took.errors}")
        return figures(took, bench.stats(), pace.slots)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ours beside the old barrier and a bare window.")
    pace_arguments(parser, slots=32)
    given = parser.parse_args()
    schemes = {name: measured(name, given.prompts, given.completions, pace_of(given)) for name in ("ours", *SCHEMES)}
    ours = schemes["ours"]
    for name in SCHEMES:
        for figure in ("serve_s", "wall_s", "cpu_s"):
            schemes[name][f"{figure[:-2]}_over_ours"] = round(schemes[name][figure] / ours[figure], 2)
    print(json.dumps(schemes))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--scheme"]:
        name, folder, url, completions, slots = sys.argv[2:]
        asyncio.run(sample(name, Path(folder), url, int(completions), int(slots)))
    else:
        main()
