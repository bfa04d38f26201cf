"""One training, in this process and the others of its group: data, policy, step-0 check, updates, figures, adapter.

Of several processes (`ranks.py`) each does all of this with its share of every update's pairs, and only the first
talks, keeps checkpoints, is watched and publishes. Which files a training is made of, and how a group of processes is
started, is no concern of this file.
"""

import json
import shutil
import signal
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nothing_gpt import ranks, sharding
from nothing_gpt.adapters import (
    CONFIG,
    MARGINS,
    METRICS,
    WEIGHTS,
    changed_share,
    publish,
    save_adapter,
    validate_adapter,
)
from nothing_gpt.checkpoints import (
    COMPLETE,
    FOLDER,
    Checkpoints,
    alone,
    fetch_folder,
    is_sealed,
    keep_folder,
    seal,
    step_of,
    surviving_store,
)
from nothing_gpt.config import TrainingSettings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.intervals import bootstrap_mean, wilson
from nothing_gpt.losses import flip_rate, loss_at_reference
from nothing_gpt.policy import check_device, load_policy, load_tokenizer, train_in_float32, vocabulary
from nothing_gpt.preferences import read_pairs
from nothing_gpt.progress import say
from nothing_gpt.records import digest, write_jsonl
from nothing_gpt.store import Store, reporting_disk
from nothing_gpt.tracking import Tracking
from nothing_gpt.training_data import check_split, check_tokens, dataset, fit, tokenize
from nothing_gpt.training_figures import KEY_METRICS, final_figures, out_of_memory

if TYPE_CHECKING:
    from nothing_gpt.trainers import PreferenceTrainer

STEPS = "steps.jsonl"
STEP0 = "step0.json"
TRACKING = "tracking"
OURS = {"starting_version", "quantization", "bf16", "loss_type", "sft_weight", "label_smoothing"}
OURS |= {"long_pairs", "max_length", "gpus", "nodes", "gradient_accumulation_steps", "precompute_ref_log_probs"}
"""Settings that TRL's configuration does not have, or that it is given in another form."""


@dataclass(frozen=True)
class Training:
    """One training: from the adapter in `start` and the pairs in `data` to the adapter in `output`.

    `made_of` is the digest of all that decides what comes of it, `run` its name: the same, or the fingerprint of the
    artifact that it makes. `work` holds what it needs again after a kill; where `store` is given, so does that.
    """

    start: Path
    data: Path
    output: Path
    base: str
    revision: str | None
    settings: TrainingSettings
    made_of: str
    work: Path
    run: str
    store: Store | None = None


def recipe(training: Training) -> None:
    """Checks, policy, step-0 check, training, figures, publication.

    Raises:
        FatalError: bad data or adapter, a wrong reference, a loss that is not finite, no change, or too little memory
            or disk.
        TransientError: asked to stop, a checkpoint is saved; or another training is at work in the same folder.
    """
    train_rows, val_rows = (read_pairs(training.data / name) for name in ("train.jsonl", "val.jsonl"))
    with alone(training.work) if ranks.is_first_here() else nullcontext():
        with ranks.joined():
            _recipe(training, train_rows, val_rows)
        if ranks.is_first_here():
            shutil.rmtree(training.work, ignore_errors=True)


def _recipe(training: Training, train_rows: list[dict[str, Any]], val_rows: list[dict[str, Any]]) -> None:
    settings, work = training.settings, training.work
    check_device(settings.quantization)
    validate_adapter(training.start, Path(training.base) if Path(training.base).is_dir() else None)
    check_split(train_rows, val_rows)
    smoothing = label_smoothing(settings, training.data)
    tokenizer = load_tokenizer(training.base, training.revision)
    known = vocabulary(training.base, training.revision)
    counts: Counter[str] = Counter()
    for rows, name in ((train_rows, "train.jsonl"), (val_rows, "val.jsonl")):
        tokens = tokenize(tokenizer, rows)
        check_tokens(tokens, known, name)
        rows[:] = fit(rows, tokens, settings.max_length, settings.long_pairs, counts, name)

    from nothing_gpt.trainers import CheckStart, ShowSteps, Survive, reporting_full_disk

    checkpoints = Checkpoints(work, training.store, training.run)
    with reporting_disk(work):
        checkpoint = _newest_of_all(checkpoints)
        with ranks.first_here_first():
            if checkpoint and (checkpoint / TRACKING).is_dir() and not (work / TRACKING).exists():  # another machine's
                shutil.copytree(checkpoint / TRACKING, work / TRACKING)
    expected = loss_at_reference(settings.loss_type, settings.beta, smoothing)
    start = CheckStart(expected, _beginning(checkpoint, training) if checkpoint else {})
    going_on_after = step_of(checkpoint) if checkpoint else 0
    tracking = Tracking(work / TRACKING, training.run, tags(training), settings.model_dump(), going_on_after)

    def add(checkpoint: Path) -> None:
        # For a machine that has nothing else. TensorBoard's file is up to date by now, W&B's may lag behind.
        (checkpoint / STEP0).write_text(json.dumps({"made_of": training.made_of, "figures": start.figures}))
        tracking.leave(checkpoint / TRACKING)

    survive = Survive(checkpoints, add)
    survive.listen()
    with reporting_full_disk(work), out_of_memory(settings), tracking:
        tracking.used("pairs", [training.data / name for name in ("train.jsonl", "val.jsonl")])
        trainer = build_trainer(training, tokenizer, train_rows, val_rows, smoothing)
        for callback in (ShowSteps("train"), start, survive, *tracking.callbacks()):
            trainer.add_callback(callback)
        if checkpoint:
            say(f"train: going on from {checkpoint.name}")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if survive.asked:
            raise TransientError(
                f"train: stopped at step {trainer.state.global_step} of {trainer.state.max_steps} with a "
                "checkpoint saved; run again to go on"
            )
        margins, adapter = trainer.pair_margins(), trainer.whole_adapter()
        if not ranks.is_first():
            return
        figures = {
            **start.figures,
            **final_figures(trainer.state.log_history),
            **interval("accuracy", wilson(sum(margin > 0 for margin in margins), len(margins))),
            **interval("margin", bootstrap_mean(margins)),
            "train_pairs": len(trainer.train_dataset),
            "val_pairs": len(margins),
            "pairs_dropped": counts["dropped"],
            "pairs_truncated": counts["truncated"],
            "longest_sequence": counts["longest"],
            "label_smoothing": smoothing,
            "sft_weight": settings.sft_weight,
            "warmup_steps": trainer.args.get_warmup_steps(trainer.state.max_steps),
            "wandb": tracking.url,
        }
        finished = finish(training, trainer, adapter, figures)
        measured = zip(map(digest, val_rows), margins, strict=True)
        write_jsonl(finished / MARGINS, ({"pair": pair, "margin": margin} for pair, margin in measured))
        tracking.made("adapter", [finished / CONFIG, finished / WEIGHTS, finished / METRICS])
    tracking.leave(finished / TRACKING)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is left is shorter than to begin again
    publish(finished, training.output)


def _newest_of_all(checkpoints: Checkpoints) -> Path | None:
    """The newest checkpoint that every machine has or can fetch: a copy for the others may have failed."""
    at_most = None
    while True:
        with ranks.first_here_first():
            newest = checkpoints.newest(at_most)
        step = step_of(newest) if newest else 0
        at_most = ranks.least(step)
        if not ranks.anyone(step != at_most):
            return newest


def _beginning(checkpoint: Path, training: Training) -> dict[str, float]:
    """The figures before the first update, as a checkpoint keeps them.

    Raises:
        FatalError: it is of another training, for the name of this one was given and is not its digest.
    """
    begun = json.loads((checkpoint / STEP0).read_bytes())
    if begun.get("made_of") != training.made_of:
        raise FatalError(
            f"train: {checkpoint.name} of the run {training.run} was made of other data, adapter, base or settings; "
            "give another --run, or none"
        )
    return begun["figures"]


def label_smoothing(settings: TrainingSettings, data: Path) -> float:
    """The share of labels taken to be swapped (0 to 0.5); where it is to be measured, from the judge's agreement with
    itself in `quality.json` beside the pairs.

    Raises:
        FatalError: it is to be measured, and was not.
    """
    if settings.label_smoothing != "measured":
        return settings.label_smoothing
    try:
        agreement = json.loads((data / "quality.json").read_bytes())["agreement"]
        return flip_rate(float(agreement))
    except (OSError, ValueError, KeyError, TypeError):
        raise FatalError(
            f"{data / 'quality.json'}: holds no agreement of the judge; set training.label_smoothing to a number, or "
            "make the pairs with judge.votes=2"
        ) from None


def build_trainer(
    training: Training,
    tokenizer: Any,
    train_rows: list[dict[str, Any]],
    val_rows: list[dict[str, Any]],
    smoothing: float,
) -> "PreferenceTrainer":
    """TRL's trainer of the policy, its data tokenised and its reference's log-probabilities known: computed now, or
    found where an earlier attempt left them.

    Raises:
        FatalError: as `load_policy`.
    """
    import torch
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from nothing_gpt.trainers import PreferenceTrainer, check_float32

    settings, cuda = training.settings, torch.cuda.is_available()
    prepared, key = training.work / "prepared", f"{FOLDER}/{training.run}/prepared"
    with ranks.first_here_first():
        if not is_sealed(prepared):
            shutil.rmtree(prepared, ignore_errors=True)
            prepared.parent.mkdir(parents=True, exist_ok=True)
            with surviving_store("what is prepared is made anew, for the store's copy cannot be had"):
                fetch_folder(training.store, key, prepared)
        train_set, val_set = dataset(train_rows, prepared), dataset(val_rows, prepared)
    sharded = sharding.arguments(training.base, training.revision, settings)
    policy = load_policy(
        training.base, training.revision, training.start, settings.quantization, settings.bf16, bool(sharded)
    )
    trainer = PreferenceTrainer(
        model=policy,
        processing_class=tokenizer,
        train_dataset=train_set,
        eval_dataset=val_set,
        # Cut here, and not by DPOConfig.max_length: with that, TRL's cache of what it computed depends on the whole
        # configuration, the output folder included.
        # Padded with any token, for padding is masked; one that was added to a tokenizer the model may not know.
        data_collator=DataCollatorForPreference(pad_token_id=0, max_length=settings.max_length),
        args=DPOConfig(
            output_dir=str(training.work),
            loss_type=[settings.loss_type, "sft"],
            loss_weights=[1.0, settings.sft_weight],
            label_smoothing=smoothing,
            max_length=None,
            bf16=cuda and settings.bf16,
            use_cpu=not cuda,
            eval_strategy="steps",
            save_strategy="steps",
            save_total_limit=2,
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            gradient_accumulation_steps=settings.gradient_accumulation_steps // ranks.count(),
            ddp_find_unused_parameters=False,
            **settings.model_dump(exclude=OURS),
            # TRL leaves what it computed on the first machine's disk alone.
            **{"precompute_ref_log_probs": settings.precompute_ref_log_probs and settings.nodes == 1, **sharded},
        ),
    )
    train_in_float32(policy)
    check_float32(trainer.model)
    if ranks.is_first_here():
        seal(prepared)
    if training.store is not None and ranks.is_first():
        with surviving_store("what is prepared is on this machine only"):
            if not training.store.read(f"{key}/{COMPLETE}"):
                keep_folder(training.store, key, prepared)
    return trainer


def finish(
    training: Training, trainer: "PreferenceTrainer", adapter: dict[str, Any] | None, figures: dict[str, Any]
) -> Path:
    """A folder in `work` with the adapter (None: as the trainer's model has it), validated, its metrics and its log.

    Raises:
        FatalError: the adapter is not finite, or is still the starting one.
    """
    finished = training.work / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    policy: Any = trainer.model
    save_adapter(policy, finished, adapter)
    validate_adapter(finished)
    changed = changed_share(training.start, finished)
    if changed == 0:
        raise FatalError("train: the adapter did not change; raise training.learning_rate or training.num_train_epochs")
    revision = getattr(policy.config, "_commit_hash", None)
    figures = {**figures, "changed_share": changed, "base_revision": revision}
    (finished / METRICS).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    before = {"step": 0, **{f"eval_{theirs}": figures[f"step0_{ours}"] for theirs, ours in KEY_METRICS.items()}}
    log = [before, *(row for row in trainer.state.log_history if row["step"])]
    for row in log:
        if "train_loss" in row:  # the trainer's own mean is over the steps since a resume
            row["train_loss"] = figures["train_loss"]
    write_jsonl(finished / STEPS, map(_without_timing, log))
    return finished


def tags(training: Training) -> list[str]:
    """What a run is found by, beside its fingerprint."""
    settings = training.settings
    return [training.run, settings.loss_type, f"beta {settings.beta:g}", f"seed {settings.seed}"]


def interval(name: str, estimate: Any) -> dict[str, Any]:
    """An estimate on the validation pairs as it stands in `metrics.json`."""
    return {f"eval_{name}": estimate.value, f"eval_{name}_ci": [estimate.low, estimate.high]}


def _without_timing(row: dict[str, Any]) -> dict[str, Any]:
    timed = ("_runtime", "_per_second", "_preparation_time", "total_flos", "num_tokens")
    return {name: value for name, value in row.items() if not name.endswith(timed)}
