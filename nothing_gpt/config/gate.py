"""What the gate wants before it lets an adapter pass."""

from typing import Literal

from pydantic import Field

from nothing_gpt.config.group import Group


class GateSettings(Group):
    """What a candidate must show, and who must agree, before it may replace the served adapter. Bounds are on 95 %
    intervals."""

    approval: Literal["off", "required"] = Field(
        default="off",
        description="required: a run that passed the gate waits until a person has looked at answers of both adapters "
        "and approves or rejects, in Prefect's form, or on the terminal of `nothing-gpt run`.",
    )
    approval_hours: float = Field(
        default=72,
        gt=0,
        le=720,
        description="How long a deployment's run waits for that; then it fails, and Retry asks again.",
    )

    min_accuracy: float = Field(
        default=0.5, ge=0, le=1, description="Lower bound of the validation accuracy must exceed this."
    )
    min_margin: float = Field(default=0.0, description="Lower bound of the validation margin must exceed this.")
    min_win_rate: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Lower bound of the win rate must exceed this, against the starting adapter and against the one "
        "now served. Held-out prompts (prompts.test_share, test_limit) are compared only until that is decided.",
    )
    max_length_drift: float = Field(
        default=2.0,
        gt=1,
        description="Answers that are so many times longer or shorter than the starting adapter's, in the mean, fail.",
    )
    max_form_loss: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of the lines `[CHARACTER] text` may fall by this much from the starting adapter's.",
    )
    max_repetition_gain: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of repeated 4-grams may rise by this much over the starting adapter's.",
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
