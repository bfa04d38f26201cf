"""Run summaries and details as the pipeline gives them, with figures and lines invented here."""

import math
import random
from typing import Any

from nothing_gpt.agreement import People
from nothing_gpt.quality import Quality

NAMES = ("MARLA", "DIETER", "OONA", "PIP")
LINES = (
    "I alphabetised the spoons and now nobody can find the soup.",
    "You can't return a sandwich, it isn't a library.",
    "The lift asked me a question and I answered it.",
    "My aunt owns half of a boat. The wet half.",
    "He waved at me as if we shared a secret, so now we do.",
    "Who irons a scarf? A person with nothing to hide.",
)
SECONDS = {
    "prompts": 0.2,
    "generate": 41.3,
    "judge": 12.8,
    "pairs": 0.4,
    "train": 96.5,
    "evaluate": 58.1,
    "gate": 0.0,
    "promote": 3.7,
}


def full_summary() -> dict[str, Any]:
    """A run that promoted its adapter."""
    return {
        "run": "9f2c61d0a4be",
        "started": "2031-05-04T10:15:00+00:00",
        "seconds": 214.6,
        "place": "embedded",
        "seed": 0,
        "stages": {
            name: {
                "status": "cached" if name == "prompts" else "ran",
                "seconds": seconds,
                "rows": None if name in ("gate", "promote") else 336,
            }
            for name, seconds in SECONDS.items()
        },
        "data": data_quality(),
        "training": {
            "step0_loss": 0.6931,
            "eval_loss": 0.5912,
            "eval_accuracy": 0.891,
            "eval_accuracy_ci": [0.791, 0.946],
            "eval_margin": 0.231,
            "eval_margin_ci": [0.187, 0.276],
            "steps": 60,
            "changed_share": 1.0,
            "train_pairs": 235,
            "val_pairs": 64,
        },
        "win_rate": {"value": 0.848, "ci": [0.742, 0.922], "n": 64},
        "gate": {
            "passed": True,
            "reasons": [
                {"passed": True, "text": "accuracy 0.891 [0.791, 0.946]; its lower bound must exceed 0.5"},
                {"passed": True, "text": "win rate 0.848 [0.742, 0.922]; its lower bound must exceed 0.5"},
            ],
        },
        "promoted": {"name": "seinfeld", "version": 3, "fingerprint": "4be1c90d27f3a6e8"},
        "cost_usd": 0.0123,
        "cost": {"judge": 0.0, "gpu": 0.0123, "total": 0.0123},
        "error": None,
    }


def data_quality() -> Quality:
    """The figures of `quality.json`."""
    chance = random.Random(3)
    return Quality(
        sets=336,
        judged_sets=333,
        pairs=299,
        drops={"degenerate": 3, "not judged": 3, "tie": 9, "votes disagree": 25},
        failures=3,
        degenerate=3,
        agreement=0.8979,
        agreement_ci=[0.861, 0.926],
        agreement_by_model={"judge-1": 0.8979},
        models_agreement=None,
        models_agreement_ci=None,
        self_consistency=0.9375,
        self_consistency_ci=[0.717, 0.989],
        repeats=16,
        tie_share=0.027,
        best_by_position={"1": 220, "2": 214, "3": 205},
        expected_by_position={"1": 213, "2": 213, "3": 213},
        position_p=0.69,
        longer_chosen=0.531,
        longer_chosen_ci=[0.474, 0.587],
        longer_chosen_p=0.31,
        length_gap=9.8,
        chosen_lengths=[round(chance.gauss(150, 40)) for _ in range(299)],
        rejected_lengths=[round(chance.gauss(140, 48)) for _ in range(299)],
        truncated_completions=0.39,
        truncated_chosen=0.21,
        truncated_rejected=0.44,
        characters_chosen={"MARLA": 210, "DIETER": 180, "OONA": 122, "PIP": 90},
        characters_rejected={"MARLA": 160, "DIETER": 201, "OONA": 140, "PIP": 111},
        usage={"judge": {"prompt_tokens": 670_000, "completion_tokens": 120_000, "cost_usd": 0.501}},
    )


def people() -> People:
    """The figures of `people.json`."""
    return People(
        labels=100,
        matched=96,
        ranked=84,
        kappa_best=0.62,
        kappa_best_ci=[0.47, 0.75],
        kappa_worst=0.55,
        kappa_worst_ci=[0.4, 0.69],
    )


def failed_gate_summary() -> dict[str, Any]:
    """A run whose adapter learned little, from a judge that likes length."""
    summary = full_summary()
    summary["data"] |= {
        "agreement": 0.41,
        "longer_chosen": 0.71,
        "longer_chosen_ci": [0.65, 0.76],
        "longer_chosen_p": 2e-9,
    }
    summary["warnings"] = ["judge.min_agreement: the judge's orders agree on 41.0% of the sets"]
    summary["training"] |= {"eval_accuracy": 0.516, "eval_accuracy_ci": [0.396, 0.634], "step0_loss": 1.588}
    summary["win_rate"] = {"value": 0.539, "ci": [0.41, 0.664], "n": 64}
    summary["gate"] = {
        "passed": False,
        "reasons": [
            {"passed": False, "text": "accuracy 0.516 [0.396, 0.634]; its lower bound must exceed 0.5"},
            {"passed": False, "text": "win rate 0.539 [0.410, 0.664]; its lower bound must exceed 0.5"},
            {"passed": True, "text": "299 pairs; at least 50 are wanted"},
        ],
    }
    return summary | {"promoted": None, "error": "evaluation accuracy and win rate are not surely above 0.5"}


def pairs_only_summary() -> dict[str, Any]:
    """A run with `--until pairs`."""
    summary = full_summary()
    stages = dict(list(summary["stages"].items())[:4])
    return summary | {"stages": stages, "training": None, "win_rate": None, "gate": None, "promoted": None}


def crashed_summary() -> dict[str, Any]:
    """A run whose first stage failed: nearly everything is missing."""
    return {
        "run": "5d0e",
        "stages": {"generate": {"status": "failed", "seconds": 1.5, "rows": None}},
        "error": "127.0.0.1:8000 refuses the connection; start vLLM or set place.serve_url",
        "data": None,
    }


def steps() -> list[dict[str, Any]]:
    """A trainer's log of 60 steps with an evaluation every 15."""
    chance = random.Random(1)
    rows: list[dict[str, Any]] = []
    for step in range(61):
        margin = 0.24 * (1 - math.exp(-step / 18))
        if step % 15 == 0:
            rows.append(
                {
                    "step": step,
                    "eval_loss": 0.6931 - margin * 0.4,
                    "eval_rewards/margins": margin,
                    "eval_rewards/accuracies": 0.9 if step else 0.0,
                }
            )
        if step % 5 == 0 and step:
            rows.append(
                {
                    "step": step,
                    "loss": 0.69 - margin * 0.42 + chance.gauss(0, 0.01),
                    "rewards/margins": margin + chance.gauss(0, 0.02),
                    "rewards/accuracies": 0.8,
                }
            )
    return rows


def pairs(count: int, text: str | None = None) -> list[dict[str, Any]]:
    """Pairs in TRL's format; `text` stands for every completion where it is given."""
    return [
        {
            "prompt": _prompt(i),
            "chosen": [{"role": "assistant", "content": text or _scene(i, 4)}],
            "rejected": [{"role": "assistant", "content": text or _scene(i + 7, 3)}],
            "reasons": ["judge-1, shown chosen as 3 and rejected as 1: 3 keeps every voice"],
        }
        for i in range(count)
    ]


def comparisons(count: int) -> list[dict[str, Any]]:
    """Rows of `comparisons.jsonl`."""
    reasons = ["2 answers the question that was asked", "1 keeps every voice and does not repeat itself"]
    return [
        {
            "prompt": _prompt(i),
            "reference": _scene(i + 11, 3),
            "candidate": _scene(i + 5, 4),
            "score": (1, 1, 0.5, 0)[i % 4],
            "reasons": reasons,
        }
        for i in range(count)
    ]


def _prompt(seed: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Continue the scene. Each line is [CHARACTER] and what they say."},
        {"role": "user", "content": _scene(seed + 100, 4)},
    ]


def _scene(seed: int, lines: int) -> str:
    chance = random.Random(seed)
    return "\n".join(f"[{chance.choice(NAMES)}] {chance.choice(LINES)}" for _ in range(lines))
