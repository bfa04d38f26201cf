"""A trainer's steps shown as our own progress. It imports transformers, so only training modules import it."""

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from nothing_gpt.progress import progress


class ShowSteps(TrainerCallback):
    """Shows the steps of a `transformers.Trainer` under a label, from the step that it begins or goes on from."""

    def __init__(self, label: str):
        self._label = label
        self._shown = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance = self._shown.enter_context(progress(self._label, state.max_steps, state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._shown.close()
