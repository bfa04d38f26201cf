"""On how many workers a stage's shards are worked on."""

from typing import Literal

from pydantic import Field

from nothing_gpt.config.group import Group


class ScaleSettings(Group):
    """How the stages that ask somebody grow past one machine (docs/scaling.md). No fingerprint holds these settings:
    the results are the same."""

    runner: Literal["threads", "ray"] = Field(
        default="threads",
        description="Prefect's task runner for shards. threads: on this machine, which one worker alone fills. ray: on "
        "the machines of a Ray cluster, which must have this program (the extra ray too), its secrets, the way to "
        "Prefect's server, and the same store: place gke, or a data folder that all of them see under one path. The "
        "worker's image has no Ray.",
    )
    address: str | None = Field(
        default=None,
        pattern=r"^(ray://)?[^:/]+:\d+$",
        description="ray: the cluster, HOST:PORT from one of its machines or ray://HOST:10001 from outside; empty: "
        "one that is made on this machine for the stage.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Shards at once, each of at least 1,024 prompts to complete or sets to judge; they divide "
        "concurrency among them. 1: no shards. Batches and the evaluation, in rounds of 32 prompts, are never divided.",
    )
    judge_limit: str | None = Field(
        default=None,
        description="Prefect's global concurrency limit, with a slot decay, of which each call of your judge takes a "
        "slot, whichever worker makes it, but no batch; empty: the judge's answers alone slow its calls down. Made by "
        "`prefect gcl create NAME --limit CALLS --slot-decay-per-second CALLS_A_SECOND`.",
    )
