"""What we add to TRL's trainers. It imports torch and all that, so only what trains imports it."""

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainerCallback, set_seed
from trl.trainer.dpo_trainer import DPOTrainer

from nothing_gpt import ranks
from nothing_gpt.checkpoints import Checkpoints
from nothing_gpt.errors import FatalError, stop_at_once
from nothing_gpt.pair_batches import SortedUpdates
from nothing_gpt.progress import progress
from nothing_gpt.store import reporting_disk
from nothing_gpt.training_figures import start_figures


class ShowSteps(TrainerCallback):
    """Shows the steps of a `transformers.Trainer` under a label, from the step that it begins or goes on from."""

    def __init__(self, label: str):
        self._label = label
        self._shown = ExitStack()
        self._advance: Callable[[], None] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._advance is None:  # from here on a stop is gone on from; the evaluation before is none of the steps
            self._advance = self._shown.enter_context(progress(self._label, state.max_steps, state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._advance
        self._advance()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._shown.close()


class CheckStart(TrainerCallback):
    """Checks the evaluation before the first step (`start_figures`, and raises as that) and keeps its `figures`.

    They are taken in training, not before it: FSDP shards a model together with its optimizer."""

    def __init__(self, expected: float, figures: dict[str, float]):
        self._expected = expected
        self.figures = figures

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            self.figures = start_figures(metrics, self._expected)


class EvaluationLeft(Exception):
    """The process was asked to stop while it evaluated."""


class Survive(TrainerCallback):
    """Seals and copies away every checkpoint, and ends training with one when the process is asked to stop (SIGTERM).

    Transformers' own answer to SIGTERM waits three seconds and saves in the middle of a step; this one saves at the
    step's end, so that what is gone on from is what an undisturbed run went through. It leaves an evaluation at once,
    and the run that goes on makes up for it. There is one before the first step too.

    Of several ranks all stop at the same step, whichever was asked.

    `add` puts more into a checkpoint before it is sealed. `asked` says that the process was asked to stop in training.
    """

    def __init__(self, checkpoints: Checkpoints, add: Callable[[Path], None] = lambda _: None):
        self._checkpoints = checkpoints
        self._add = add
        self._training = False
        self.asked = False

    def listen(self) -> None:
        """Obeys SIGTERM from now on. Outside of the training itself there is nothing to save, and the process ends at
        once."""
        signal.signal(signal.SIGTERM, self._stop)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training = state.global_step > 0
        state.compute_steps(args, state.max_steps)  # a checkpoint says how often the run that saved it logged and saved
        due = state.global_step == state.max_steps or state.global_step % state.eval_steps == 0
        done = any("eval_loss" in row and row["step"] == state.global_step for row in state.log_history)
        args.eval_on_start = due and not done

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._anyone_asked():
            self._leave(control)
        if control.should_save or control.should_evaluate:
            control.should_log = True  # or the steps since the last log would be in no log after a resume

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._anyone_asked():
            self._leave(control)
            raise EvaluationLeft

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ranks.meet()  # each has put its own into it
        if ranks.is_first():
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._add(checkpoint)
            self._checkpoints.keep(checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training = False

    def _anyone_asked(self) -> bool:
        self.asked = ranks.anyone(self.asked)
        return self.asked

    def _leave(self, control: Any) -> None:
        control.should_save = control.should_training_stop = True
        control.should_evaluate = False  # a preempted machine has half a minute

    def _stop(self, *_: Any) -> None:
        if not self._training:
            stop_at_once()
        self.asked = True


@contextmanager
def reporting_full_disk(work: Path) -> Iterator[None]:
    """As `reporting_disk`, for what torch and safetensors raise too when they cannot write: no OSError."""
    with reporting_disk(work):
        try:
            yield
        except (RuntimeError, SafetensorError) as error:
            if not any(sign in str(error) for sign in _CANNOT_WRITE):
                raise
            raise OSError(errno.ENOSPC, "the disk is full") from None


_CANNOT_WRITE = ("PytorchStreamWriter failed writing", "unexpected pos", "No space left", "File too large")


def check_float32(model: Any) -> None:
    """Raises FatalError where a trainable parameter is not float32: updates of the usual size would round away."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise FatalError(f"train: {name} is {parameter.dtype}, and not float32; check the versions of trl and peft")


class PreferenceTrainer(DPOTrainer):
    """TRL's DPO trainer, which stops at a loss that is no number, and evaluates by the preference loss alone, whatever
    is added to it in training: so the loss before the first update is known, and runs with other weights compare.

    What was evaluated, or computed by an earlier attempt, does not move the dice that training throws.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        set_seed(self.args.seed)
        return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedUpdates:
        pairs = self.train_dataset if train_dataset is None else train_dataset
        sides = zip(pairs["prompt_ids"], pairs["chosen_ids"], pairs["rejected_ids"], strict=True)
        update = self.args.train_batch_size * self.args.gradient_accumulation_steps * ranks.count()
        return SortedUpdates([sum(map(len, pair)) for pair in sides], update, self.args.seed)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._left_over = self._left(len(self.train_dataset), self.args.train_batch_size)
        in_all = len(batches) * ranks.count()
        self._rest, self._weight = None, 1.0
        if self._left_over:  # an epoch's end: one process's micro-batches count alike, and what is made up nothing
            whole = in_all - ranks.count() - (-self._left_over // self.args.train_batch_size)
            self._rest, self._weight = batches[-1], in_all / whole
        return batches, items

    def _left(self, pairs: int, size: int) -> int:
        """Of several ranks: how many of all `pairs` there are in the row of micro-batches of `size`, one a rank, that
        was read last, if it is not full: 0 otherwise. Accelerate fills it up with pairs from the beginning."""
        ended = ranks.count() > 1 and self.accelerator.gradient_state.end_of_dataloader
        return pairs % (size * ranks.count()) if ended else 0

    def _pieces(self, batch: dict[str, torch.Tensor], left: int) -> list[tuple[dict[str, torch.Tensor], int]]:
        """A micro-batch of such a row in pieces as long on one rank as on another, which TRL's figures want: each is
        all this rank's own, or all made up. With each how many pairs of it are own."""
        size = len(batch["input_ids"]) // 2
        own = min(max(left - ranks.number() * size, 0), size)
        cuts = [left % size, size - left % size] if left % size else [size]
        sides = {name: [side.split(cuts) for side in tensor.split(size)] for name, tensor in batch.items()}
        pieces = [
            {name: torch.cat([side[i] for side in both]) for name, both in sides.items()} for i in range(len(cuts))
        ]
        first = min(own, cuts[0])
        return list(zip(pieces, [first, own - first], strict=False))

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        return loss * self._weight if model.training else loss

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if inputs is not self._rest:
            return self._finite(super().training_step(model, inputs, *args, **kwargs))
        pieces, weight, losses = self._pieces(inputs, self._left_over), self._weight, []
        own = sum(pairs for _, pairs in pieces)
        for piece, pairs in pieces:
            self._weight = weight * pairs / own if own else 0.0
            losses.append(super().training_step(model, piece, *args, **kwargs))
        return self._finite(torch.stack(losses).sum())

    def _finite(self, loss: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(loss):
            raise FatalError(
                f"train: the loss of step {self.state.global_step + 1} is {loss.item()}; lower training.learning_rate "
                f"to {self.args.learning_rate / 4:.2g}; the last whole checkpoint is kept"
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        weights = self.loss_weights
        self.loss_weights = [1.0, *[0.0] * (len(weights) - 1)]
        try:
            with torch.random.fork_rng(devices=[]):
                return super().evaluate(*args, **kwargs)
        except EvaluationLeft:
            return {}
        finally:
            self.loss_weights = weights

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        answer: Any = None
        left = self._left(len(self.eval_dataset), self.args.eval_batch_size)
        pieces = self._pieces(inputs, left) if left else [(inputs, len(inputs["input_ids"]) // 2)]
        for piece, pairs in pieces:
            answer = super().prediction_step(model, piece, *args, **kwargs)
            self._evaluated += torch.tensor([answer[0].item() * pairs, pairs], dtype=torch.double)
        return answer

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', but for the loss of several ranks: the mean over all pairs, however they are spread over
        batches and ranks."""
        self._evaluated = torch.zeros(2, dtype=torch.double)
        output: Any = super().evaluation_loop(*args, **kwargs)
        if ranks.count() == 1:
            return output
        sums: Any = self.accelerator.reduce(self._evaluated.to(self.args.device))
        loss, pairs = sums.tolist()
        output.metrics["eval_loss"] = loss / pairs
        return output

    def whole_adapter(self) -> dict[str, Any] | None:
        """What is trained, where it is sharded over the ranks, gathered by all of them; else None."""
        if not self.is_fsdp_enabled:
            return None
        trained = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        model: Any = self.model
        return get_model_state_dict(model, options=trained)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers', which of a sharded model would gather the base too, in the first rank's memory."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=self.whole_adapter())
        else:
            super().save_model(output_dir, _internal_call)

    def pair_margins(self) -> list[float]:
        """Reward margin of each validation pair: beta times the difference of the two log-ratios (equation 7 of the
        DPO paper: the argument of its sigmoid)."""
        margins: list[float] = []
        model: Any = self.model_wrapped
        model.eval()
        for batch in self.get_eval_dataloader():
            if self.precompute_ref_logps:
                reference_chosen, reference_rejected = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
            else:
                reference_chosen, reference_rejected = self.compute_ref_log_probs(model, batch)
            labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
            with torch.no_grad(), self.accelerator.autocast():
                outputs = model(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    labels=labels,
                    use_cache=False,
                    fused_lm_head=True,
                )
            chosen, rejected = outputs.log_probs.sum(dim=1).chunk(2)
            ratios = (chosen - reference_chosen) - (rejected - reference_rejected)
            gathered: Any = self.accelerator.gather_for_metrics(self.beta * ratios)
            margins.extend(gathered.tolist())
        return margins
