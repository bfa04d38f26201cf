"""A fake of Modal's client and of the machines behind it: a volume, the deployed app, its calls.

The function that a call runs is the app's own, in a container that is new for each try: an empty disk, and of the
volume what was committed. Exceptions and log entries are the package's own classes; `test_modal_app.py` holds the
fakes' signatures against the package's.
"""

import contextlib
import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import modal
from modal import exception
from modal.types import LogEntry

CHUNK = 37
"""Log entries are cut anywhere."""


class Cloud:
    """Everything there. `preempt_at` is a text in a line of output upon which the container is taken away, once."""

    def __init__(self, folder: Path, app: ModuleType):
        self.folder, self.app = folder, app
        self.volume = folder / "volume"
        self.volume.mkdir(parents=True, exist_ok=True)
        self.calls: dict[str, Call] = {}
        if self.memory.exists():
            self.calls = pickle.loads(self.memory.read_bytes())
        self.uploads: list[list[str]] = []
        self.refuses: Exception | None = None
        self.deployed = True
        self.damaged: set[str] = set()
        self.preempt_at: str | None = None
        self.unreachable_logs = False
        self.before_get: Callable[[], object] = lambda: None
        self.retries = 3
        self.containers = 0
        self.gpus: list[str | None] = []

    @property
    def memory(self) -> Path:
        """The calls as another process finds them."""
        return self.folder / "calls"

    def client(self) -> SimpleNamespace:
        """What stands where the package `modal` does."""
        bound = {
            kind.__name__: type(kind.__name__, (kind,), {"cloud": self}) for kind in (Function, Volume, FunctionCall)
        }
        return SimpleNamespace(**bound, Error=modal.Error)

    def committed(self) -> None:
        """What a container wrote is on the volume now."""

    def reach(self) -> None:
        if self.refuses:
            raise self.refuses


@dataclass
class Call:
    """A call in the cloud: what is known of it there."""

    argument: bytes
    output: list[str] = field(default_factory=list)
    result: bytes | None = None
    error: Exception | None = None
    cancelled: bool = False

    @property
    def over(self) -> bool:
        return self.result is not None or self.error is not None or self.cancelled


class Preempted(io.StringIO):
    """The standard output of a container, which is taken away at a certain text."""

    def __init__(self, cloud: Cloud):
        super().__init__()
        self.cloud = cloud

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.cloud.preempt_at and self.cloud.preempt_at in text:
            self.cloud.preempt_at = None
            raise KeyboardInterrupt
        return written


def execute(cloud: Cloud, call: Call) -> None:
    """Runs the app's function to its end, as Modal does: anew on the same input when its container is taken away, and a
    few times when it raises."""
    failures = 0
    while not call.over:
        cloud.containers += 1
        container = cloud.folder / f"container-{cloud.containers}"
        mounted = shutil.copytree(cloud.volume, container / "vol")

        def commit(mounted: Path = mounted) -> None:
            shutil.rmtree(cloud.volume)
            shutil.copytree(mounted, cloud.volume)
            cloud.committed()

        app = cloud.app
        app.ROOT, app.SCRATCH = mounted, container / "tmp"  # pyright: ignore[reportAttributeAccessIssue]
        app.volume = SimpleNamespace(reload=lambda: None, commit=commit)  # pyright: ignore[reportAttributeAccessIssue]
        output = Preempted(cloud)
        try:
            with contextlib.redirect_stdout(output):
                call.result = pickle.dumps(app.train.local(pickle.loads(call.argument)))
        except KeyboardInterrupt:
            pass
        except Exception as error:
            failures += 1
            if failures > cloud.retries:
                call.error = error
        call.output.append(output.getvalue())


class Function:
    cloud: Cloud

    def __init__(self, app_name: str, name: str):
        self.named = (app_name, name)

    @classmethod
    def from_name(cls, app_name: str, name: str, *, environment_name: str | None = None) -> "Function":
        return cls(app_name, name)

    def hydrate(self) -> "Function":
        self.cloud.reach()
        if not self.cloud.deployed or self.named != ("nothing-gpt", "train"):
            raise exception.NotFoundError(f"Lookup failed for {self.named}")
        return self

    def with_options(self, *, gpu: str | None = None) -> "Function":
        self.cloud.gpus.append(gpu)
        return self

    def spawn(self, *args: Any, **kwargs: Any) -> "FunctionCall":
        self.cloud.reach()
        (order,) = args
        identity = f"fc-{len(self.cloud.calls) + 1}"
        self.cloud.calls[identity] = Call(pickle.dumps(order))
        self.cloud.memory.write_bytes(pickle.dumps(self.cloud.calls))
        return self.cloud.client().FunctionCall(identity)


class FunctionCall:
    cloud: Cloud

    def __init__(self, object_id: str):
        self.object_id = object_id
        self.logs = CallLogs(self)

    @classmethod
    def from_id(cls, function_call_id: str) -> "FunctionCall":
        return cls(function_call_id)

    @property
    def call(self) -> Call:
        return self.cloud.calls[self.object_id]

    def get(self, timeout: float | None = None) -> Any:
        self.cloud.reach()
        if self.object_id not in self.cloud.calls:
            raise exception.NotFoundError(self.object_id)
        if not self.call.over and timeout == 0:
            raise TimeoutError
        if timeout != 0:
            self.cloud.before_get()
            execute(self.cloud, self.call)
        if self.call.cancelled:
            raise exception.RemoteError("the call was cancelled")
        if self.call.error:
            raise self.call.error
        assert self.call.result is not None
        return pickle.loads(self.call.result)

    def cancel(self, terminate_containers: bool = False) -> None:
        self.cloud.reach()
        assert terminate_containers, "the training would run on"
        self.call.cancelled = True


class CallLogs:
    """A call's log; a stream begins at the beginning, and ends now and then."""

    def __init__(self, call: FunctionCall):
        self._call = call

    def stream(self, timeout: float | None = None) -> Iterator[LogEntry]:
        cloud, call = self._call.cloud, self._call.call
        assert timeout, "a stream of a call that is never seen to end would never end"
        if cloud.unreachable_logs:
            raise exception.ServiceError("logs are away")
        cloud.before_get()
        begun = datetime(2026, 1, 1, tzinfo=UTC)
        for container, text in enumerate(call.output):
            for start in range(0, len(text), CHUNK):
                when = begun + timedelta(hours=container, milliseconds=start)
                yield LogEntry(text[start : start + CHUNK], when, "stdout", self._call.object_id, [])
        if not call.over:
            execute(cloud, call)
            yield from self.stream(timeout)


class Volume:
    cloud: Cloud

    @classmethod
    def from_name(cls, name: str, *, environment_name: str | None = None, create_if_missing: bool = False) -> "Volume":
        assert (name, create_if_missing) == ("nothing-gpt", True)
        return cls()

    def _path(self, path: str) -> Path:
        return self.cloud.volume / path.lstrip("/")

    @contextlib.contextmanager
    def batch_upload(self, force: bool = False) -> Iterator["Batch"]:
        self.cloud.reach()
        batch = Batch()
        yield batch
        self.cloud.uploads.append([*batch.files])
        for remote, data in batch.files.items():
            path = self._path(remote)
            assert force or not path.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def read_file(self, path: str) -> Iterator[bytes]:
        self.cloud.reach()
        file = self._path(path)
        if not file.is_file():
            raise FileNotFoundError(path)
        data = file.read_bytes()
        if file.name in self.cloud.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        for start in range(0, len(data), 64):
            yield data[start : start + 64]

    def remove_file(self, path: str, recursive: bool = False) -> None:
        self.cloud.reach()
        assert recursive
        shutil.rmtree(self._path(path))


class Batch:
    """The files of one upload, which appear together when it ends."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def put_file(self, local_file: Path | io.BytesIO, remote_path: str) -> None:
        self.files[remote_path] = local_file.read_bytes() if isinstance(local_file, Path) else local_file.read()
