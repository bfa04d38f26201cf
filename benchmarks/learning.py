"""Does training learn on the embedded place, and do the guide's values? Accuracy and margin of both, and a plot.

    for S in 0 1 2; do
        nothing-gpt run --settings deployments/embedded.yaml --set place.data=/tmp/seed$S --seed $S --until pairs
    done
    python -m benchmarks.learning /tmp/seed0 /tmp/seed1 /tmp/seed2 --plot docs/learning.svg

Trains the starting adapter of each place on its pairs, once with `deployments/embedded.yaml` and once with the preset
`guide` (in float32: NF4 needs a GPU), by the program the chain runs. The two share everything else. Evaluations are put
closer together than the settings say, which changes nothing in training. The last line is JSON.
"""

import argparse
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from nothing_gpt.config import TrainingSettings
from nothing_gpt.jobs.local import run_module
from nothing_gpt.loading import load_settings

DEPLOYMENTS = Path(__file__).parent.parent / "deployments"
GROUPS = {
    "embedded.yaml": (DEPLOYMENTS / "embedded.yaml", 4),
    "guide's values": (DEPLOYMENTS / "presets/guide.yaml", 1),
}
"""Settings file, and after how many updates to evaluate."""

COLOURS = {"embedded.yaml": "#0f9d8a", "guide's values": "#e4633f"}


@dataclass(frozen=True)
class Trained:
    """A finished training: its figures, and its evaluations in the order of their steps."""

    group: str
    place: str
    metrics: dict[str, Any]
    evaluations: list[dict[str, float]]


def train(place: Path, group: str, seed: int) -> Trained:
    """One training of the starting adapter of a place."""
    file, eval_steps = GROUPS[group]
    overrides = [f"training.eval_steps={eval_steps}", "training.quantization=none"]
    settings = load_settings(file, overrides, seed).training
    with tempfile.TemporaryDirectory() as folder:
        adapter = trained(place, artifact(place, "pairs"), settings, Path(folder))
        metrics = json.loads((adapter / "metrics.json").read_text())
        rows = [json.loads(line) for line in (adapter / "steps.jsonl").read_text().splitlines()]
    return Trained(group, place.name, metrics, [row for row in rows if "eval_loss" in row])


def trained(place: Path, pairs: Path, settings: TrainingSettings, work: Path) -> Path:
    """A folder in `work` with a place's starting adapter, trained by the program that the chain runs."""
    (work / "settings.json").write_text(json.dumps({"training": settings.model_dump()}))
    places = {
        "SFT_ADAPTER_PATH": str(artifact(place, "sft")),
        "ADAPTER_PATH": str(work / "adapter"),
        "DPO_DATA_PATH": str(pairs),
        "BASE_MODEL": str(artifact(place, "base")),
    }
    run_module("nothing_gpt.dpo.train", ["--settings", str(work / "settings.json")], places, work / "log")
    return work / "adapter"


def artifact(place: Path, stage: str) -> Path:
    """The folder of the one artifact that a stage left in a place.

    Raises:
        ValueError: there is none, or more than one.
    """
    (folder,) = (manifest.parent for manifest in (place / "store" / stage).glob("*/manifest.json"))
    return folder


def plot(trainings: list[Trained]) -> str:
    """Accuracy and margin on the validation pairs, a line a training, as SVG."""
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    accuracy, margin = figure.subplots(1, 2)
    for panel, key, name in (
        (accuracy, "eval_rewards/accuracies", "validation accuracy"),
        (margin, "eval_rewards/margins", "validation margin"),
    ):
        for training in trainings:
            last = training.evaluations[-1]["step"]
            panel.plot(
                [100 * row["step"] / last for row in training.evaluations],
                [row[key] for row in training.evaluations],
                color=COLOURS[training.group],
                marker=".",
                linewidth=1.2,
            )
        panel.set(xlabel="share of training (%)", title=name)
        panel.grid(color="#d9dee7", linewidth=0.6)
    accuracy.axhline(0.5, color="#6b7688", linewidth=1, linestyle="--")
    for group, colour in COLOURS.items():
        margin.plot([], [], color=colour, label=group)
    margin.legend(frameon=False)
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context({"svg.hashsalt": "learning"}):
        file = Path(folder) / "plot.svg"
        figure.savefig(file, metadata={"Date": None})
        return re.sub(r"[ \t]+$", "", file.read_text(), flags=re.MULTILINE)


def row_of(trained: Trained) -> str:
    """A row of the table: updates, loss before and after, accuracy and margin with their 95 % intervals."""
    figures = trained.metrics
    (low, high), (least, most) = figures["eval_accuracy_ci"], figures["eval_margin_ci"]
    return (
        f"| {trained.group} | {trained.place} | {figures['steps']} "
        f"| {figures['step0_loss']:.4f}, {figures['eval_loss']:.4f} "
        f"| {figures['eval_accuracy']:.3f} [{low:.3f}, {high:.3f}] of {figures['val_pairs']} "
        f"| {figures['eval_margin']:.4f} [{least:.4f}, {most:.4f}] |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What training learns on embedded places.")
    parser.add_argument("places", type=Path, nargs="+", help="data folders of runs that came to pairs")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    args = parser.parse_args()
    trainings = []
    for seed, place in enumerate(args.places):
        for group in GROUPS:
            trained = train(place, group, seed)
            trainings.append(trained)
            print(row_of(trained), flush=True)
    if args.plot:
        args.plot.write_text(plot(trainings))
    keep = ("steps", "step0_loss", "eval_loss", "eval_accuracy", "eval_accuracy_ci", "eval_margin", "eval_margin_ci")
    rows = [{"group": t.group, "place": t.place, **{key: t.metrics[key] for key in keep}} for t in trainings]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
