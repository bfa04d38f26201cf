"""What a whole flow needs and a test can afford: a vLLM and a judge that are fakes, and a trainer that trains nothing.

All three agree on one thing: the number in a completion is its quality, and the trained adapter writes higher ones.
"""

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.cli import main
from nothing_gpt.config import Settings, TrainingSettings
from nothing_gpt.jobs import local
from nothing_gpt.loading import load_settings
from nothing_gpt.store import FolderStore
from tests.fake_endpoint import Answer, FakeEndpoint, Request, says, serving
from tests.fake_vllm import FakeVLLM, save_adapter, save_base, serving_adapters

START, TRAINED = 0.25, 0.75
PROMPTS = 48
PAIRS = 40
"""On which the trainer says that it validated."""
METRICS = {
    "step0_loss": math.log(2),
    "step0_expected": math.log(2),
    "step0_margin": 0.0,
    "eval_loss": 0.5,
    "eval_accuracy": 0.8,
    "eval_accuracy_ci": [0.7, 0.88],
    "eval_margin": 0.2,
    "eval_margin_ci": [0.1, 0.3],
    "steps": 4,
    "train_loss": 0.6,
    "train_pairs": 30,
    "val_pairs": PAIRS,
}


@dataclass
class Trainer:
    """Stands in for the training process: writes what it would write, after raising `errors`, in order."""

    errors: list[Exception] = field(default_factory=list)
    runs: int = 0
    right: Callable[[TrainingSettings], int] = lambda _: PAIRS * 8 // 10
    """How many of the validation pairs the adapter tells apart that is trained with these settings."""
    quality: Callable[[TrainingSettings], float] = lambda _: TRAINED
    """The quality of what it writes."""
    began: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_end.set()

    def __call__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        assert module == "nothing_gpt.dpo.train"
        self.runs += 1
        self.began.set()
        assert self.may_end.wait(30)
        if self.errors:
            raise self.errors.pop(0)
        folder = save_adapter(Path(environment["ADAPTER_PATH"]), self.quality(_settings(arguments)))
        right = self.right(_settings(arguments))
        (folder / "metrics.json").write_text(json.dumps(METRICS | {"eval_accuracy": right / PAIRS}))
        margins = [{"pair": str(n), "margin": 0.1 if n < right else -0.1} for n in range(PAIRS)]
        (folder / "margins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in margins))
        (folder / "steps.jsonl").write_text('{"step": 1, "loss": 0.69}\n{"step": 4, "loss": 0.5}\n')


def _settings(arguments: Sequence[str]) -> TrainingSettings:
    """What the training process was told."""
    return load_settings(Path(arguments[arguments.index("--settings") + 1])).training


def judge(request: Request) -> Answer:
    """The highest number is best, the lowest worst, in whatever order they are shown."""
    shown = json.loads(request["messages"][1]["content"])["completions"]
    by_quality = sorted(shown, key=lambda completion: int(re.findall(r"\d+", completion["text"])[0]))
    return says(
        json.dumps(
            {"reason": "numbers", "best": by_quality[-1]["number"], "worst": by_quality[0]["number"], "tie": False}
        ),
        model="judge",
    )


@dataclass
class Engines:
    """A place of one's own: its two endpoints, its files, and the settings that name them."""

    folder: Path
    vllm: FakeVLLM
    judge: FakeEndpoint

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.data / "store")

    @property
    def start(self) -> Path:
        return self.folder / "start"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def calls(self) -> int:
        """Completions and verdicts that were asked for."""
        return len(self.vllm.completions) + len(self.judge.requests)

    def values(self, **others: Any) -> dict[str, str]:
        """The settings; `others` by `group__key`."""
        return {
            "place.kind": "local",
            "place.data": str(self.data),
            "place.serve_url": self.vllm.url,
            "place.judge_url": self.judge.url,
            "place.base_model": str(self.folder / "base"),
            "place.sft_adapter": str(self.start),
            "prompts.paths": json.dumps([str(self.prompts)]),
            "prompts.test_share": "0.3",
            "judge.model": "judge",
            "judge.prices": "{judge: {input: 1, output: 1}}",
            "judge.val_ratio": "0.25",
            "gate.min_pairs": "10",
            **{name.replace("__", "."): str(value) for name, value in others.items()},
        }

    def settings(self, **others: Any) -> Settings:
        return load_settings(None, [f"{name}={value}" for name, value in self.values(**others).items()])

    def options(self, **others: Any) -> list[str]:
        """The settings as the command line takes them."""
        return [part for name, value in self.values(**others).items() for part in ("--set", f"{name}={value}")]


@contextmanager
def engines(folder: Path) -> Iterator[Engines]:
    """A vLLM that serves the starting adapter under the stable name, a judge, and a file of prompts."""
    with serving_adapters() as vllm, serving() as judging:
        vllm.serve("seinfeld", save_adapter(folder / "start", START))
        save_base(folder / "base")
        judging.answer = judge
        judging.models = Answer(body=json.dumps({"object": "list", "data": [{"id": "judge"}]}).encode())
        rows = [{"prompt": [{"role": "user", "content": f"[ANNA] Platform {n} again."}]} for n in range(PROMPTS)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield Engines(folder, vllm, judging)


def program() -> None:
    """`nothing-gpt`, but it trains nothing. As there, Prefect is not imported before its server is up."""
    local.run_module = Trainer()
    main()
