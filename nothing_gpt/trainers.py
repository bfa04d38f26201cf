"""What we add to TRL's trainers. It imports torch and all that, so only what trains imports it."""

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback
from trl.trainer.dpo_trainer import DPOTrainer

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


class PreferenceTrainer(DPOTrainer):
    """TRL's DPO trainer, which evaluates by the preference loss alone, whatever is added to it in training: so the loss
    before the first update is known, and losses of runs with other weights can be compared."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        weights = self.loss_weights
        self.loss_weights = [1.0, *[0.0] * (len(weights) - 1)]
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.loss_weights = weights
