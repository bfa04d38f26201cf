"""Does training find a preference behind wrong labels? A known preference, a known share of labels swapped.

    nothing-gpt run --settings deployments/embedded.yaml --set place.data=/tmp/seed0 --seed 0 --until pairs
    python -m benchmarks.noise /tmp/seed0 --noise 0.2

Two continuations of a scene, four lines each: one keeps a line in its speaker's own voice nine times in ten, the other
one time in ten, and the one with more lines in voice is chosen, so that the best reachable accuracy is 1. A share of
the training pairs is then swapped. Trained are the place's base and starting adapter, by the program the chain runs: on
clean labels, and on swapped ones with the `sigmoid` and the `robust` loss, the latter knowing the share. Accuracy is
held out, on other scenes and clean labels. The last line is JSON.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.learning import DEPLOYMENTS, artifact, trained
from nothing_gpt.embedded.scripts import CHARACTERS, THINGS, words_of
from nothing_gpt.loading import load_settings
from nothing_gpt.records import read_jsonl, write_jsonl

LINES = 4
CARE = (0.9, 0.1)
CHANGED = ["training.sft_weight=0", "training.eval_steps=100000"]
"""From deployments/embedded.yaml: the preference loss alone, for the supervised term would copy swapped labels."""


def continuation(thing: str, care: float, dice: random.Random) -> tuple[str, int]:
    """A continuation of a scene, and how many of its lines are in their speaker's own voice: each at odds of `care`."""
    lines, in_voice = [], 0
    for _ in range(LINES):
        speaker = dice.choice(list(CHARACTERS))
        own = dice.random() < care
        heard = speaker if own else dice.choice([name for name in CHARACTERS if name != speaker])
        lines.append(f"[{speaker}] {CHARACTERS[heard].line(thing, dice)}")
        in_voice += own
    return "\n".join(lines), in_voice


def pair(prompt: list[dict[str, str]], dice: random.Random) -> dict[str, Any]:
    """A pair for a scene, in TRL's format; the chosen side has more lines in voice."""
    thing = next(word for word in words_of(prompt[-1]["content"]) if word in THINGS)
    (better, more), (worse, fewer) = (continuation(thing, care, dice) for care in CARE)
    if more <= fewer:
        return pair(prompt, dice)
    sides = {"chosen": better, "rejected": worse}
    return {"prompt": prompt} | {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}


def swapped(rows: list[dict[str, Any]], share: float, dice: random.Random) -> list[dict[str, Any]]:
    """The rows, a share of them (exactly, to the nearest pair) with chosen and rejected swapped."""
    wrong = set(dice.sample(range(len(rows)), round(share * len(rows))))
    return [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if index in wrong else row
        for index, row in enumerate(rows)
    ]


def train(place: Path, seed: int, noise: float, loss: str, pairs: int, held_out: int, epochs: int) -> dict[str, Any]:
    """Figures of one training; equal seeds give equal pairs and equal swaps."""
    dice = random.Random(seed)
    scenes = [row["prompt"] for _, row in read_jsonl(artifact(place, "scripts") / "prompts.jsonl")]
    dice.shuffle(scenes)
    kept, seen = scenes[:held_out], scenes[held_out:]
    rows = [pair(prompt, dice) for prompt in [*dice.choices(seen, k=pairs), *kept]]
    overrides = [*CHANGED, f"training.num_train_epochs={epochs}", f"training.loss_type={loss}"]
    overrides += [f"training.label_smoothing={noise}"] if loss == "robust" else []
    settings = load_settings(DEPLOYMENTS / "embedded.yaml", overrides, seed).training
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_jsonl(work / "train.jsonl", swapped(rows[:pairs], noise, dice))
        write_jsonl(work / "val.jsonl", rows[pairs:])
        return json.loads((trained(place, work, settings, work) / "metrics.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out accuracy under a known share of wrong labels.")
    parser.add_argument("place", type=Path, help="data folder of an embedded run that came to pairs")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=480)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--held-out", type=int, default=100)
    args = parser.parse_args()
    runs = [(0.0, "sigmoid"), *((noise, loss) for noise in args.noise for loss in ("sigmoid", "robust"))]
    table = []
    for seed in range(args.seeds):
        for noise, loss in runs:
            figures = train(args.place, seed, noise, loss, args.pairs, args.held_out, args.epochs)
            table.append({"noise": noise, "loss": loss, "seed": seed, "accuracy": figures["eval_accuracy"]})
            print(
                f"seed {seed}, noise {noise:.2f}, {loss}: {figures['eval_accuracy']:.3f}, "
                f"margin {figures['eval_margin']:.3f}",
                flush=True,
            )
    for noise, loss in runs:
        values = [row["accuracy"] for row in table if (row["noise"], row["loss"]) == (noise, loss)]
        print(f"noise {noise:.2f}, {loss}: mean {sum(values) / len(values):.3f} of {len(values)} seeds")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
