"""What a stage that is to do will ask for and cost, as far as that is known beforehand. Needs no Prefect."""

from dataclasses import dataclass

from nothing_gpt.config import Settings
from nothing_gpt.embedded.judge import MODEL

TO_DO = "to do"
PROMPT_TOKENS = 600
VERDICT_TOKENS = 300
"""What the judge is shown beside the completions, and what it thinks and writes (150 to 600 were seen), in tokens."""
SECONDS_A_PAIR = 0.88
"""Training seconds a pair and epoch on an L4: 808 s for 919 pairs were measured for a 3B model before any tuning."""


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: `cached` or `to do`, rows and calls where they can be foreseen, and the expected USD."""

    stage: str
    status: str
    rows: int | None = None
    calls: int | None = None
    usd: float | None = None


def expected(stage: str, settings: Settings, counts: dict[str, int]) -> Planned:
    """The stage as it is planned where `counts` tells the prompts (`rows`) and those held out (`test_rows`)."""
    prompts, held_out = counts["rows"], counts["test_rows"]
    votes = settings.judge.votes
    if stage in ("prompts", "pairs"):  # of the pairs these are the most that there can be
        return Planned(stage, TO_DO, prompts)
    if stage == "generate_pairs":
        return Planned(stage, TO_DO, prompts, calls=prompts)
    if stage == "judge":
        return Planned(
            stage,
            TO_DO,
            prompts,
            calls=votes * prompts,
            usd=_judging_usd(settings, votes * prompts, settings.sampling.num_completions),
        )
    if stage == "train":
        training, pairs = settings.training, round(prompts * (1 - settings.judge.val_ratio))
        hours = pairs * training.num_train_epochs * SECONDS_A_PAIR / 3600
        return Planned(stage, TO_DO, pairs, usd=hours * settings.place.gpu_usd_per_hour)
    if stage == "evaluate":
        return Planned(stage, TO_DO, held_out, calls=4 * held_out, usd=_judging_usd(settings, 2 * held_out, 2))
    return Planned(stage, TO_DO)


def _judging_usd(settings: Settings, calls: int, completions: int) -> float | None:
    model = MODEL if settings.place.kind == "embedded" else settings.judge.model
    price = settings.judge.prices.get(model)
    if price is None:
        return None
    asked = PROMPT_TOKENS + completions * settings.sampling.max_tokens
    return calls * (asked * price.input + VERDICT_TOKENS * price.output) / 1e6
