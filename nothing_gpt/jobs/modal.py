"""Training on Modal: inputs put on a volume, the deployed app's function called, the adapter pulled back.

`modal deploy deployments/modal_app.py` puts the app there; `modal_worker.py` is what it runs. A call outlives us: its
id lies beside the work folder, so a flow that was killed finds its call again. (Killed in the instant between the call
and its id on the disk, it makes a second one; the first trains in vain.) This has not been run against Modal itself.
"""

import io
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nothing_gpt.adapters import CONFIG, WEIGHTS, validate_adapter
from nothing_gpt.bases import known_base
from nothing_gpt.checkpoints import COMPLETE
from nothing_gpt.config.place import ModalSettings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.jobs.local import check_ended_well
from nothing_gpt.jobs.modal_worker import ADAPTER, INPUTS, Order, Outcome
from nothing_gpt.processes import Run
from nothing_gpt.progress import Relay, say
from nothing_gpt.records import file_digest
from nothing_gpt.store import reporting_disk
from nothing_gpt.version import code_digest

try:
    import modal
    from aiohttp import ClientError
    from modal import exception
except ModuleNotFoundError as error:  # this file is imported where a run's place is Modal
    raise FatalError(f"place.kind=modal: needs the package {error.name}; pip install 'nothing-gpt[modal]'") from None

DEPLOY = "modal deploy deployments/modal_app.py"
FUNCTION = "train"
GPU = "L4"
"""The deployed function's; a training on several gets a container with as many."""
DATA = ("train.jsonl", "val.jsonl", "quality.json")
POLL_SECONDS = 10.0
UNREACHABLE = (
    exception.AuthError,
    exception.ConnectionError,
    exception.InternalError,
    exception.ResourceExhaustedError,
    exception.ServiceError,
    ClientError,
    ConnectionError,
)
"""Errors of the way to Modal, which say nothing of a call there."""


@dataclass(frozen=True)
class Job:
    """One training as it was asked for: the files it reads, by their names among a run's inputs, and its places."""

    module: str
    run: str
    inputs: dict[str, Path]
    base: str
    revision: str | None
    output: Path
    call_file: Path

    @classmethod
    def of(cls, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> "Job":
        """The job of a `Run`'s arguments: pairs of an option and its value. `--store` is not looked at: what must
        survive lies on the volume.

        Raises:
            FatalError: a file is missing.
        """
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        data, start = Path(environment["DPO_DATA_PATH"]), Path(environment["SFT_ADAPTER_PATH"])
        inputs = {f"data/{name}": data / name for name in DATA if name != "quality.json" or (data / name).exists()}
        inputs |= {f"adapter/{name}": start / name for name in (CONFIG, WEIGHTS)}
        inputs["settings.json"] = Path(options["--settings"])
        work = Path(options["--work"])
        return cls(
            module,
            options["--run"],
            inputs,
            environment["BASE_MODEL"],
            environment.get("BASE_REVISION"),
            Path(environment["ADAPTER_PATH"]),
            work.with_name(f"{work.name}.call"),
        )

    @property
    def folder(self) -> str:
        """The run's folder on the volume."""
        return f"runs/{self.run}"


def modal_run(settings: ModalSettings, gpus: int = 1) -> Run:
    """Runs a training as a call of the deployed app, on `gpus` GPUs; it raises as `local.run_module`.

    Interrupted by a person it cancels the call. Killed, or without the network, it leaves the call alone, and run again
    it waits for that one.

    Raises, when run:
        FatalError: also: no account, no such app, other code there, or no end within `running_hours`.
        TransientError: also: Modal cannot be reached, or the call's time ran out with a checkpoint kept.
    """

    def run(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        job = Job.of(module, arguments, environment)
        with clear_errors(settings):
            named: dict[str, Any] = {"environment_name": settings.environment}
            function = modal.Function.from_name(settings.app, FUNCTION, **named).hydrate()
            if gpus > 1:
                function = function.with_options(gpu=f"{GPU}:{gpus}")
            volume = modal.Volume.from_name(settings.volume, create_if_missing=True, **named)
            outcome = _outcome(job, function, volume, settings.running_hours, log)
            check_ended_well(module, outcome["code"], outcome["tail"], log)
            _fetch(volume, job, outcome["files"])
            _tidy(volume, job)

    return run


def _outcome(job: Job, function: modal.Function, volume: modal.Volume, hours: float, log: Path) -> Outcome:
    """What became of the run's call: of the one that was made before, or of one that is made now."""
    call = _earlier(job)
    try:
        if call is None:
            call = function.spawn(_put(volume, job))
            job.call_file.write_text(call.object_id)
        say(f"train: on Modal as call {call.object_id}")
        outcome = _follow(call, hours, log)
    except UNREACHABLE:
        raise  # the call goes on without us
    except BaseException as error:
        if call and not isinstance(error, Exception):
            _cancel(call)
        job.call_file.unlink(missing_ok=True)
        raise
    job.call_file.unlink()  # what it made is on the volume, where another call finds it
    return outcome


def _cancel(call: "modal.FunctionCall[Any]") -> None:
    """Ends a call and its container; a person is told either way."""
    try:
        call.cancel(terminate_containers=True)
        say(f"train: call {call.object_id} on Modal is cancelled; its checkpoints stay for the next run")
    except (modal.Error, ClientError) as error:
        say(f"train: call {call.object_id} on Modal is NOT cancelled ({_line(error)}); stop it at modal.com")


def _earlier(job: Job) -> "modal.FunctionCall[Any] | None":
    """The run's call that is still at work, or whose outcome is to be had."""
    if not job.call_file.is_file():
        return None
    call = modal.FunctionCall.from_id(job.call_file.read_text())
    try:
        call.get(timeout=0)
    except TimeoutError:
        pass  # at work
    except UNREACHABLE:
        raise
    except Exception:  # whatever ended it, it is over
        return None
    return call


def _put(volume: modal.Volume, job: Job) -> Order:
    """Puts what the call needs on the volume; a base model's folder only where it is not there yet."""
    inputs = {name: file_digest(file) for name, file in job.inputs.items()}
    base, base_files = job.base, {}
    if (Path(base) / "config.json").is_file():
        base = f"bases/{known_base(base, None).identity[:16]}"
        base_files = {path.name: path.stat().st_size for path in sorted(Path(job.base).iterdir()) if path.is_file()}
        _put_base(volume, base, Path(job.base), base_files)
    with volume.batch_upload(force=True) as batch:
        for name, file in job.inputs.items():
            batch.put_file(file, f"/{job.folder}/{INPUTS}/{name}")
    return Order(
        module=job.module,
        run=job.run,
        folder=job.folder,
        inputs=inputs,
        base=base,
        base_files=base_files,
        revision=job.revision,
        code=code_digest(),
    )


def _put_base(volume: modal.Volume, base: str, folder: Path, files: Mapping[str, int]) -> None:
    """The marker goes last, so a folder with one is whole."""
    try:
        if json.loads(b"".join(volume.read_file(f"{base}/{COMPLETE}"))) == files:
            return
    except FileNotFoundError:
        pass
    say(f"train: putting the base model on Modal's volume, {sum(files.values()) / 1e9:.1f} GB, this once")
    with volume.batch_upload(force=True) as batch:
        for name in files:
            batch.put_file(folder / name, f"/{base}/{name}")
    with volume.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(json.dumps(files).encode()), f"/{base}/{COMPLETE}")


def _follow(call: "modal.FunctionCall[Any]", hours: float, log: Path) -> Outcome:
    """Waits for the call's end and shows its log meanwhile, each line once.

    Raises:
        FatalError: it took too long and is cancelled. Whatever the call raised.
    """
    deadline = time.monotonic() + hours * 3600
    seen: set[tuple[Any, str]] = set()
    rest: dict[str, str] = defaultdict(str)  # an entry may hold a part of a line
    log.parent.mkdir(parents=True, exist_ok=True)
    with Relay() as relay, log.open("a", encoding="utf-8") as file:
        while time.monotonic() < deadline:
            try:
                for entry in call.logs.stream(timeout=POLL_SECONDS):
                    if (key := (entry.timestamp, entry.message)) in seen:
                        continue  # a stream that is opened again may begin at the beginning
                    seen.add(key)
                    *lines, rest[entry.source] = (rest[entry.source] + entry.message).split("\n")
                    for line in lines:
                        relay(line)
                        file.write(line + "\n")
                    file.flush()
                    if time.monotonic() > deadline:
                        break
            except UNREACHABLE:
                pass  # the log is a convenience; the call itself is asked next
            try:
                return call.get(timeout=POLL_SECONDS)
            except TimeoutError:
                continue
    _cancel(call)
    raise FatalError(f"train: no end after {hours:g} h on Modal; raise place.modal.running_hours, run again to go on")


def _fetch(volume: modal.Volume, job: Job, files: Mapping[str, str]) -> None:
    """Pulls the adapter; its folder appears whole or not at all.

    Raises:
        TransientError: a file's bytes are not those the call wrote.
        FatalError: it is no adapter that can be served, or the disk is full.
    """
    with reporting_disk(job.output), tempfile.TemporaryDirectory(prefix=".", dir=job.output.parent) as scratch:
        whole = Path(scratch) / "adapter"
        for name, checksum in files.items():
            target = whole / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file, suppress(FileNotFoundError):
                file.writelines(volume.read_file(f"{job.folder}/{ADAPTER}/{name}"))
            if file_digest(target) != checksum:  # the next call looks whether it is so on the volume already
                raise TransientError(f"train: {name} came damaged from Modal's volume; run again to fetch it again")
        validate_adapter(whole)
        shutil.rmtree(job.output, ignore_errors=True)
        whole.replace(job.output)


def _tidy(volume: modal.Volume, job: Job) -> None:
    """Deletes the run's data and checkpoints from the volume; that this fails is no reason to lose the adapter."""
    try:
        volume.remove_file(f"/{job.folder}", recursive=True)
    except (modal.Error, ClientError, OSError) as error:
        say(f"train: {job.folder} stays on Modal's volume ({_line(error)})")


@contextmanager
def clear_errors(settings: ModalSettings) -> Iterator[None]:
    """Modal's exceptions as one line that says what to do."""
    try:
        yield
    except exception.AuthError:
        raise FatalError("place.kind=modal: no account, or its token is not valid; run `modal token new`") from None
    except exception.NotFoundError:
        where = f" in environment {settings.environment}" if settings.environment else ""
        raise FatalError(f"place.modal: no app {settings.app} with `{FUNCTION}`{where}; run `{DEPLOY}`") from None
    except exception.FunctionTimeoutError:
        raise TransientError("train: its time on Modal ran out; run again to go on from its checkpoint") from None
    except (*UNREACHABLE, exception.TimeoutError, exception.InternalFailure) as error:
        raise TransientError(f"train: Modal cannot be reached ({_line(error)}); run again to go on") from None
    except modal.Error as error:
        raise FatalError(f"train: Modal says: {_line(error)}; `modal app logs {settings.app}` may tell more") from None


def _line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
