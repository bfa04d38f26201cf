"""Where a training can be watched: TensorBoard always, and Weights & Biases.

W&B is on where WANDB_API_KEY is set; else its files are written for `wandb sync`, and WANDB_MODE=disabled turns it off.
A service that fails, at whatever moment, never stops a training: it is said once. Both get settings, metrics and
names, and no secret: nothing here reads the environment but W&B itself.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from nothing_gpt import ranks
from nothing_gpt.progress import say

if TYPE_CHECKING:
    from transformers import TrainerCallback

PROJECT = "nothing-gpt"


class Tracking:
    """One run's events in `folder`, of its first rank alone: `tensorboard/`, and `wandb/` in a form of its own. A
    context manager.

    `run` is the run's fingerprint: its name and its id, so that a resumed run goes on in the same place. `first_step`
    is the step that it goes on after; what was logged beyond it is hidden.
    """

    def __init__(self, folder: Path, run: str, tags: Sequence[str], config: Mapping[str, Any], first_step: int = 0):
        self._folder = folder
        self._run = run
        self._tags = [tag[:64] for tag in tags]  # W&B takes no longer ones
        self._config = dict(config)
        self._first_step = first_step
        self._said = False

    def __enter__(self) -> Self:
        self._wandb = None
        self._online = False
        if not ranks.is_first():
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        online = bool(os.environ.get("WANDB_API_KEY")) and os.environ.get("WANDB_MODE", "online") == "online"
        self._wandb = self._start("online") if online else None
        self._online = self._wandb is not None
        if self._wandb is None and os.environ.get("WANDB_MODE") != "disabled":
            self._wandb = self._start("offline")
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._wandb is not None:
            import wandb

            with self._guarded():
                self._wandb.finish(exit_code=1 if error else 0)
            with self._guarded():
                wandb.teardown()  # only when its service has ended is the file whole: `finish` does not wait for that

    @property
    def url(self) -> str | None:
        """Where Weights & Biases shows the run, None where it does not."""
        with self._guarded():
            return self._wandb.url if self._wandb and self._online else None

    def callbacks(self) -> "list[TrainerCallback]":
        """What tells both about a `transformers.Trainer`'s log."""
        from transformers.integrations.integration_utils import WandbCallback

        if not ranks.is_first():
            return []
        callbacks: list[Any] = []
        for make in (self._tensorboard, *([WandbCallback] if self._wandb else [])):
            with self._guarded():
                callbacks.append(make())
        both: Any = _Guarded(callbacks, self._guarded)
        return [both]

    def used(self, kind: str, files: Sequence[Path]) -> None:
        """Links what training was given, such as its data, to the run."""
        if self._wandb is not None and self._online:
            with self._guarded():
                self._wandb.use_artifact(_artifact(f"{kind}-{self._run}", kind, files))

    def made(self, kind: str, files: Sequence[Path]) -> None:
        """Links what training made to the run."""
        if self._wandb is not None and self._online:
            with self._guarded():
                self._wandb.log_artifact(_artifact(f"{kind}-{self._run}", kind, files))

    def leave(self, folder: Path) -> None:
        """Copies what can be looked at, once all is written. Of W&B's files `wandb sync` wants the event file alone."""
        unwanted = shutil.ignore_patterns("latest-run", "files", "*logs", "*.log")
        with self._guarded():
            shutil.copytree(self._folder, folder, ignore=unwanted, dirs_exist_ok=True)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Lets no fault out, and says the first one."""
        try:
            yield
        except (Exception, SystemExit) as error:  # of many kinds; none may stop a training; W&B's teardown may exit
            if not self._said:
                self._said = True
                say(f"train: cannot be watched as it should ({_reason(error)}); training goes on")

    def _tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations.integration_utils import TensorBoardCallback

        return TensorBoardCallback(SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._first_step + 1))

    def _start(self, mode: Literal["online", "offline"]) -> Any:
        """W&B's run, or None where it cannot be had."""
        import wandb

        try:
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=f"dpo-{self._run[:8]}",
                id=self._run,
                resume="allow",
                tags=self._tags,
                config=self._config,
                dir=str(self._folder),
                mode=mode,
                # No repository, no code, no copy of what is printed.
                settings=wandb.Settings(
                    disable_git=True, save_code=False, disable_code=True, console="off", silent=True, init_timeout=60
                ),
            )
        except Exception as error:  # of many kinds, some of which are no wandb.Error; none may stop a training
            say(f"train: W&B cannot be used {mode} ({_reason(error)})")
            with self._guarded():
                wandb.teardown()  # its service holds on to the run's id, and would refuse it offline
            return None


class _Guarded:
    """Callbacks as one, each of whose events is told under a guard. No TrainerCallback, which has every event's method
    itself."""

    def __init__(self, callbacks: Sequence[Any], guard: Callable[[], Any]):
        self._callbacks = callbacks
        self._guard = guard

    def __getattr__(self, event: str) -> Callable[..., None]:
        if not event.startswith("on_"):
            raise AttributeError(event)

        def tell(*arguments: Any, **options: Any) -> None:
            for callback in self._callbacks:
                with self._guard():
                    getattr(callback, event)(*arguments, **options)

        return tell


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _artifact(name: str, kind: str, files: Sequence[Path]) -> Any:
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    for file in files:
        artifact.add_file(str(file))
    return artifact
