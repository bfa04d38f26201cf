"""What is asked of whom: prompts, sampling, judge."""

from typing import Literal

from pydantic import Field

from nothing_gpt.config.group import Group


class PromptsSettings(Group):
    """Which prompts are sampled for pairs, and which are held out for the comparison of adapters."""

    paths: list[str] = Field(
        default=[],
        description="JSON-lines files of {prompt: [{role, content}, ...]} rows, read in this order, each prompt once: "
        "paths, gs://BUCKET/FILE, or keys that `nothing-gpt push FILE` prints. Empty: the embedded sample scripts.",
    )
    sample: int | None = Field(
        default=None,
        ge=1,
        description="Draw this many prompts from all files by the seed, a prompt's turn following from its content, so "
        "that a larger sample holds the smaller one; empty: all.",
    )
    limit: int | None = Field(default=None, ge=1, description="Use at most this many prompts for pairs; empty: all.")
    test_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the prompts held out for the win rate. A prompt's "
        "side follows from its content and the seed alone.",
    )
    test_limit: int | None = Field(
        default=None, ge=1, description="Use at most this many held-out prompts; empty: all."
    )
    seed: int = Field(default=42, ge=0, description="Decides which prompts are held out.")


class Price(Group):
    """Price of a model in USD per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class EndpointSettings(Group):
    """What all traffic to an endpoint has: how much at once, how many rows may fail, and what it may cost."""

    concurrency: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Sequences that the endpoint works on at once; of several replicas, each.",
    )
    max_failed_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="The stage fails when more rows than this share could not be had; one may always fail. Failed rows "
        "are asked for again by the next run.",
    )
    max_cost_usd: float | None = Field(
        default=None, gt=0, description="Stop cleanly before the call that would exceed it; needs a price."
    )
    prices: dict[str, Price] = Field(
        default={}, description="USD per million tokens, by model. An unknown price is said, not guessed."
    )


class SamplingSettings(EndpointSettings):
    """Stage 1: several completions a prompt, from the adapter that is to be improved."""

    model: str = Field(
        default="seinfeld",
        min_length=1,
        description="Stable name of the adapter at the endpoint. A run asks "
        "for a versioned name made from it, so that a promotion never makes old completions stale.",
    )
    num_completions: int = Field(
        default=3,
        ge=2,
        le=16,
        description="Completions a prompt. 3 is the least that ranks well, "
        "5 covers more at more cost; above that best-versus-worst gains little.",
    )
    temperature: float = Field(
        default=0.9,
        ge=0,
        le=2,
        description="Diversity. Below 0.7 the completions are too alike to rank, above 1.0 to 1.2 they lose coherence.",
    )
    max_tokens: int = Field(
        default=256,
        ge=1,
        le=8192,
        description="Most tokens a completion. A completion cut here loses its unfinished last line.",
    )
    frequency_penalty: float = Field(
        default=0.5, ge=-2, le=2, description="Penalty on repeated tokens; 0.3 to 0.7 keeps a hot model out of loops."
    )
    concurrency: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Sequences in flight at once, at each replica; the server's max-num-seqs is the most that helps.",
    )
    line_filter: bool = Field(
        default=False,
        description="Keep only lines of the form `[CHARACTER] text`. A completion without one counts as empty.",
    )
    seed: int = Field(default=42, ge=0, description="Base of every request's seed.")


class JudgeSettings(EndpointSettings):
    """Stage 2: a language model ranks each prompt's completions; best and worst become a pair."""

    model: str = Field(
        default="gemini-3.5-flash-lite",
        min_length=1,
        description="Model that judges, at any endpoint that "
        "speaks OpenAI's chat protocol. A stronger judge ranks more consistently and costs more.",
    )
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="Sent only where set: some models (Gemini 3) want their default; 0 suits the others.",
    )
    max_tokens: int = Field(
        default=4096,
        ge=16,
        le=65536,
        description="Most tokens of a verdict, thinking included; doubled once where a reply was cut.",
    )
    votes: Literal[1, 2, 3] = Field(
        default=2,
        description="Orders in which each model judges a set: 2 is a seeded one and its reverse, of which both must "
        "agree, which cancels position bias; 1 costs half; 3 adds the rotations, so that every completion has stood "
        "in every place, and more than half must agree.",
    )
    panel: list[str] = Field(
        default=[],
        description="Further models at the same endpoint that vote too. A pair is kept where more than half of all "
        "votes agree.",
    )
    rubric: str | None = Field(
        default=None, description="Text file with the judge's instructions; empty: nothing_gpt/rubric.md."
    )
    repeat_share: float = Field(
        default=0.0,
        ge=0,
        le=0.1,
        description="Share of the sets that are judged once more in the same order, to measure the judge's agreement "
        "with itself. Costs as much more.",
    )
    batch: bool = Field(
        default=False,
        description="Use the endpoint's batch API: half the price at OpenAI, an answer within 24 hours. Gemini's "
        "OpenAI-compatible endpoint takes no files, so that it cannot be used there: that is said at once.",
    )
    hand_labels: str | None = Field(
        default=None,
        description="JSON-lines file of {prompt, completions, best, worst} rows labelled by people (indices from 0): "
        "the data report then tells the judge's agreement with them.",
    )
    concurrency: int = Field(
        default=16, ge=1, le=1024, description="Calls in flight at once; the provider's rate limit bounds it."
    )
    val_ratio: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of the pairs held out to measure training. 102 pairs measure accuracy to about 5 points.",
    )
    seed: int = Field(
        default=42, ge=0, description="Decides the orders shown to the judge and the train/validation split."
    )
    min_agreement: float = Field(
        default=0.5, ge=0, le=1, description="Stated limit: share of the sets whose votes agree."
    )
    max_longer_chosen: float = Field(
        default=0.6, ge=0.5, le=1, description="Stated limit: share of pairs whose chosen side is the longer one."
    )
    min_pairs: int = Field(default=50, ge=1, description="Stated limit: pairs.")
    beyond_limits: Literal["warn", "fatal"] = Field(
        default="warn", description="What the pairs stage does where a stated limit is not kept."
    )
    prices: dict[str, Price] = Field(
        default={
            "gemini-3.5-flash-lite": Price(input=0.30, output=2.50),
            "gemini-2.5-pro": Price(input=1.25, output=10.0),
        },
        description="USD per million tokens, by model.",
    )
