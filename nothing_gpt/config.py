"""All settings: six small frozen groups, each field with its bounds and the advice a person needs to choose it.

Values come from a YAML file, then `group.key=value` overrides. Secrets come from the environment (`Environment`) and
are never part of a group, so they reach no fingerprint, log, artifact or flow parameter.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Group(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptsSettings(Group):
    """Which prompts are sampled for pairs, and which are held out for the comparison of adapters."""

    paths: list[str] = Field(
        default=[],
        description="JSON-lines files of {prompt: [{role, content}, ...]} rows, read in this order, each prompt once. "
        "Empty: the embedded sample scripts.",
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

    concurrency: int = Field(default=32, ge=1, le=4096, description="Sequences that the endpoint works on at once.")
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
        description="Sequences in flight at once; the server's max-num-seqs is the most that helps.",
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
        default={"gemini-3.5-flash-lite": Price(input=0.30, output=2.50)},
        description="USD per million tokens, by model.",
    )


class TrainingSettings(Group):
    """Stage 3: DPO with TRL, on the adapter that made the completions.

    The defaults are those of `deployments/presets/recommended.yaml`, but for gradient checkpointing.
    """

    beta: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="Strength of the KL penalty that ties the policy to the reference, and the first thing to tune. "
        "0.1 is where to begin. Lower (0.05, 0.01) moves further and may forget what SFT taught; higher (0.3 to 0.5) "
        "stays close to SFT and learns less. Accuracy below 0.55: lower it to 0.05. Good accuracy but worse text: "
        "raise it. sigmoid_norm divides by the length, and wants 2 to 10.",
    )
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "sigmoid_norm"] = Field(
        default="sigmoid",
        description="sigmoid is standard DPO (Rafailov et al. 2023) and the most studied. hinge has a sharper gradient "
        "and is less stable; ipo scales otherwise and resists overfitting; robust expects wrong labels (see "
        "label_smoothing); apo_zero raises the chosen text's probability; sigmoid_norm forgets about lengths.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | Literal["measured"] = Field(
        default=0.0,
        description="robust only: share of the pairs (0 to 0.5) whose sides are taken to be swapped. measured: as "
        "often as the judge's vote must be wrong, given how often its two votes disagreed.",
    )
    sft_weight: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Weight of a supervised loss on the chosen completions, added to the preference loss (Pang et al. "
        "2024, arXiv 2404.19733). DPO alone may lower the chosen text's probability along with the rejected one's; "
        "0.2 to 1 holds it up.",
    )
    learning_rate: float = Field(
        default=2e-5,
        gt=0,
        le=1e-1,
        description="Peak learning rate. 5e-6 over 58 steps is too small a budget to learn; QLoRA recipes use 2e-5 to "
        "1e-4. Too high diverges: the loss jumps, or is no number.",
    )
    num_train_epochs: float = Field(
        default=2,
        gt=0,
        le=100,
        description="Passes over the pairs. 1 to 3; more overfits fewer than some thousands of pairs: the validation "
        "loss rises again.",
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="linear",
        description="Decay of the learning rate after the warm-up. cosine stays high for longer and ends more gently.",
    )
    warmup_steps: float = Field(
        default=0.1,
        ge=0,
        description="Steps of warm-up; below 1 it is a share of all steps. 5 to 10 % is usual; a third of a short run "
        "leaves too few steps at the full rate.",
    )
    per_device_train_batch_size: int = Field(
        default=4,
        ge=1,
        description="Pairs a micro-batch, each of which costs two sequences. Halve it where memory ends.",
    )
    per_device_eval_batch_size: int = Field(default=4, ge=1, description="Pairs a micro-batch in evaluation.")
    gradient_accumulation_steps: int = Field(
        default=4,
        ge=1,
        description="Micro-batches an update. Times the micro-batch, 16 pairs an update is usual; below 8 is noisy, "
        "above 32 wastes a small set.",
    )
    max_length: int = Field(
        default=2048,
        ge=8,
        description="Most tokens of a prompt and one completion together. What happens to a longer pair is long_pairs.",
    )
    long_pairs: Literal["refuse", "drop", "truncate"] = Field(
        default="refuse",
        description="What becomes of a pair longer than max_length. refuse stops; drop leaves the pair out; truncate "
        "cuts the end of the completion, and leaves out a pair whose prompt alone is too long or whose sides become "
        "equal. Counted in metrics.json.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations anew in the backward pass: a third slower, much less memory."
    )
    precompute_ref_log_probs: bool = Field(
        default=True, description="Run the reference once, and keep what it says, instead of at every step."
    )
    quantization: Literal["none", "nf4"] = Field(
        default="none",
        description="none: the base in bfloat16 on a CUDA device (6.4 GB for 3B parameters), in float32 on a CPU. nf4: "
        "in 4 bits, CUDA only, slower and for smaller cards.",
    )
    eval_steps: int = Field(default=25, ge=1, description="Evaluate every so many steps; 50 for long runs.")
    save_steps: int = Field(
        default=25, ge=1, description="Checkpoint every so many steps; a preemption repeats at most these."
    )
    logging_steps: int = Field(default=10, ge=1, description="Log metrics every so many steps.")
    seed: int = Field(default=42, ge=0, description="Order of the data and dropout.")
    starting_version: int = Field(
        default=0,
        ge=0,
        description="What the round starts from, samples with and is compared to. 0: the SFT adapter. n: the promoted "
        "version n (`nothing-gpt adapters list`), for a second round on its own completions.",
    )

    @model_validator(mode="after")
    def _only_robust_is_smoothed(self) -> Self:
        if self.label_smoothing and self.loss_type != "robust":
            raise ValueError("label_smoothing is for loss_type=robust; the other losses ignore it")
        return self


class GateSettings(Group):
    """What a candidate must show before it may replace the served adapter. Bounds are on 95 % intervals."""

    min_accuracy: float = Field(
        default=0.5, ge=0, le=1, description="Lower bound of the validation accuracy must exceed this."
    )
    min_margin: float = Field(default=0.0, description="Lower bound of the validation margin must exceed this.")
    min_win_rate: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Lower bound of the win rate against the starting adapter must exceed this.",
    )
    step0_tolerance: float = Field(
        default=0.02,
        gt=0,
        le=0.02,
        description="Largest distance of the loss before training from that of a policy equal to its reference (ln 2 "
        "for sigmoid); beyond it, and in training beyond 0.02, the reference is not the starting adapter.",
    )
    min_pairs: int = Field(default=50, ge=2, description="Fewer pairs than this are fatal.")
    min_agreement: float = Field(
        default=0.2, ge=0, le=1, description="Lower agreement between the judge's two orders is fatal."
    )
    max_longer_chosen: float = Field(
        default=0.8,
        gt=0.5,
        le=1,
        description="A higher share of pairs whose chosen side is the "
        "longer one is fatal: the model would learn length.",
    )


class PlaceSettings(Group):
    """Where the engines are and where results are kept. Addresses and paths change no result, so no fingerprint holds
    them; the seed does, and so do the base model and the starting adapter, which are known by more than their paths."""

    kind: Literal["embedded", "local"] = Field(
        default="embedded",
        description="embedded: everything is made and started here, "
        "nothing is needed. local: your vLLM and judge, training here.",
    )
    data: str = Field(default="data", description="Folder for the store, scratch files, logs and Prefect's database.")
    bucket: str | None = Field(
        default=None,
        description="Store for other machines too, gs://BUCKET/PREFIX: push and pull move artifacts there and back.",
    )
    gcp_block: str | None = Field(
        default=None,
        description="Prefect block with the bucket's credentials, gcp-credentials/NAME or gcs-bucket/NAME; "
        "empty: Application Default Credentials, which are also Workload Identity.",
    )
    serve_url: str | None = Field(
        default=None, description="local: address of vLLM, such as http://127.0.0.1:8000/v1; empty: SERVE_URL."
    )
    judge_url: str | None = Field(default=None, description="local: address of the judge; empty: OPENAI_BASE_URL.")
    base_model: str | None = Field(
        default=None, description="local: base model that is trained, a folder or a hub name."
    )
    base_revision: str | None = Field(
        default=None,
        description="local: commit of the base model where that is a hub name, which may change there at any time. "
        "A private model wants HF_TOKEN in the environment.",
    )
    sft_adapter: str | None = Field(
        default=None, description="local: folder of the starting adapter; empty: SFT_ADAPTER_PATH."
    )
    gpu_usd_per_hour: float = Field(
        default=0.0,
        ge=0,
        description="Price of the training machine, for the cost report. An L4 spot is about 0.25 to 0.35.",
    )
    seed: int = Field(default=0, ge=0, description="embedded: seed of the sample scripts and of the base model.")


class Settings(Group):
    """The six groups together."""

    prompts: PromptsSettings = PromptsSettings()
    sampling: SamplingSettings = SamplingSettings()
    judge: JudgeSettings = JudgeSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    place: PlaceSettings = PlaceSettings()

    @model_validator(mode="after")
    def _local_brings_its_own(self) -> Self:
        if self.place.kind == "local" and not self.prompts.paths:
            raise ValueError("prompts.paths is empty; give --prompts FILE, or use place.kind=embedded")
        if self.place.kind == "local" and not self.place.base_model:
            raise ValueError("place.base_model is empty; name the base model that the SFT adapter belongs to")
        return self

    @model_validator(mode="after")
    def _what_is_measured_can_be(self) -> Self:
        if self.training.label_smoothing == "measured" and self.judge.votes == 1:
            raise ValueError("training.label_smoothing: measured needs judge.votes=2: one vote disagrees with nobody")
        return self


class Environment(BaseSettings):
    """What the environment may hold: the guide's variables. Secrets stay `SecretStr`."""

    model_config = SettingsConfigDict(extra="ignore")

    serve_url: str = "http://127.0.0.1:8000/v1"
    serve_api_key: SecretStr | None = None
    openai_base_url: str = "https://generativelanguage.googleapis.com/v1beta/openai/"
    openai_api_key: SecretStr | None = None
    judge_model: str | None = None
    dpo_data_path: Path = Path("/vol/data/dpo")
    sft_adapter_path: Path = Path("/vol/adapters/nothing-gpt-sft")
    adapter_path: Path = Path("/vol/adapters/nothing-gpt")
    base_model: str | None = None
    base_revision: str | None = None
