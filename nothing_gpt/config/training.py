"""How the adapter is trained."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nothing_gpt.config.group import Group


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
        "1e-4. Too high diverges: the loss jumps, or is no number. A lower one needs more epochs.",
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
        description="Steps of warm-up, which keep the first updates small; below 1 it is a share of all steps. 5 to "
        "10 % is usual; a third of a short run leaves too few steps at the full rate.",
    )
    per_device_train_batch_size: int = Field(
        default=4,
        ge=1,
        description="Pairs a micro-batch, each of which costs two sequences. Halve it where memory ends.",
    )
    per_device_eval_batch_size: int = Field(
        default=4, ge=1, description="Pairs a micro-batch in evaluation. Changes no result; 1 needs the least memory."
    )
    gradient_accumulation_steps: int = Field(
        default=4,
        ge=1,
        description="Micro-batches an update. Times the micro-batch, 16 pairs an update is usual; below 8 is noisy, "
        "above 32 wastes a small set.",
    )
    max_length: int = Field(
        default=2048,
        ge=8,
        description="Most tokens of a prompt and one completion together; what SFT was trained with. 99 % of the first "
        "run's had 1,062 or fewer. What happens to a longer pair is long_pairs.",
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
    bf16: bool = Field(
        default=True,
        description="Base and arithmetic in bfloat16 on a CUDA device; the adapter is trained in float32 either way. "
        "Off: all in float32, with twice the memory, for a device that has no bfloat16 (older than Ampere). A CPU "
        "computes in float32.",
    )
    gpus: int = Field(
        default=1,
        ge=1,
        le=16,
        description="GPUs a machine, each with a process of its own; without a GPU, processes on the CPU. They share "
        "gradient_accumulation_steps, so an update has the same pairs on one GPU as on many. modal: a container with "
        "so many L4s.",
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Machines, with the same GPUs each. gke only: pods of one Indexed Job; one that is taken away is "
        "replaced, and all go on from the last checkpoint.",
    )
    eval_steps: int = Field(default=25, ge=1, description="Evaluate every so many steps; 50 for long runs.")
    save_steps: int = Field(
        default=25, ge=1, description="Checkpoint every so many steps; a preemption repeats at most these."
    )
    logging_steps: int = Field(default=10, ge=1, description="Log metrics every so many steps.")
    seed: int = Field(default=42, ge=0, description="Order of the data. TRL turns dropout off.")
    starting_version: int = Field(
        default=0,
        ge=0,
        description="What the round starts from, samples with and is compared to. 0: the SFT adapter. n: the promoted "
        "version n (`nothing-gpt adapters list`), for a second round on its own completions.",
    )

    @model_validator(mode="after")
    def _an_update_can_be_shared(self) -> Self:
        processes = self.gpus * self.nodes
        if self.gradient_accumulation_steps % processes:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} cannot be shared by gpus x nodes = "
                f"{processes} processes; set it to a multiple of {processes}, with per_device_train_batch_size so that "
                "their product is the pairs an update"
            )
        return self

    @model_validator(mode="after")
    def _only_robust_is_smoothed(self) -> Self:
        if self.label_smoothing and self.loss_type != "robust":
            raise ValueError("label_smoothing is for loss_type=robust; the other losses ignore it")
        return self
