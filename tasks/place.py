"""The engines of a run: what a place provides, started when it is first asked and ended with the run.

This is where the rooms of the library meet; no stage knows which place it works in.
"""

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nothing_gpt.adapters import CONFIG, adapter_digest
from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.bases import Base, known_base
from nothing_gpt.config import Environment, Settings
from nothing_gpt.embedded.judge import MODEL, OfflineJudge
from nothing_gpt.embedded.serving import LocalVLLM
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError
from nothing_gpt.jobs.local import run_module
from nothing_gpt.serve.promote import Server, current_folder, versioned_name
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.store import open_store
from nothing_gpt.vllm_admin import VLLM


@dataclass(frozen=True)
class Models:
    """What a run starts from: the base model and the starting adapter."""

    base: Base
    start: Artifact


class Place:
    """The engines of one run. A context manager that ends whatever it started."""

    run = staticmethod(run_module)

    def __init__(self, settings: Settings):
        self.settings = settings
        data = Path(settings.place.data)
        self.workshop = Workshop(open_store(str(data / "store")), data / "work")
        self.logs = data / "logs"
        self.environment = Environment()
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def server(self, models: Models) -> Server:
        """The live vLLM, with the current adapter under the stable name."""
        raise NotImplementedError

    def serves(self, current: Path) -> bool:
        """Whether the live vLLM, if there is one, has the current adapter under the stable name."""
        raise NotImplementedError

    def judge(self) -> Service:
        """The judge's endpoint."""
        raise NotImplementedError

    def start(self, sft: Artifact) -> Artifact:
        """What the round starts from: the SFT adapter, or the promoted version that `training.starting_version` names.

        Raises:
            FatalError: there is no such version, or its files are gone.
        """
        number = self.settings.training.starting_version
        if number == 0:
            return sft
        version = read_registry(self.workshop.store).version(number)
        found = self.workshop.find(*version.artifact.split("/")) if version else None
        if found is None:
            raise FatalError(
                f"training.starting_version: no promoted version {number} here; see `nothing-gpt adapters list`"
            )
        return found

    def adapter(self, models: Models, artifact: Artifact) -> Service:
        """One adapter's endpoint, under a versioned name: whatever is promoted later, the name means this one."""
        folder = self.workshop.folder(artifact)
        weights = adapter_digest(folder)
        name = versioned_name(self.settings.sampling.model, weights)

        def connect() -> str:
            server = self.server(models)
            admin = VLLM(server.url, server.api_key)
            if name not in admin.models():
                admin.load(name, str(folder))
            return server.url

        identity = f"{weights} on {models.base.identity}"
        return Service(connect, name, identity, self.environment.serve_api_key)


class EmbeddedPlace(Place):
    """Everything is made and started here: a tiny base, a vLLM on the CPU, an offline judge."""

    _vllm: LocalVLLM | None = None
    _judge: OfflineJudge | None = None

    def server(self, models: Models) -> Server:
        with self._lock:
            name = self.settings.sampling.model
            if self._vllm is None:
                self._vllm = self._stack.enter_context(LocalVLLM(Path(models.base.location), self.logs / "vllm.log"))
                current = current_folder(self.workshop.store, self.workshop.folder(models.start))
                VLLM(self._vllm.base_url).load(name, str(current))
            return Server(self._vllm.base_url, name, Path(models.base.location))

    def serves(self, current: Path) -> bool:
        return True  # `server` starts with it

    def judge(self) -> Service:
        def connect() -> str:
            with self._lock:
                self._judge = self._judge or self._stack.enter_context(OfflineJudge())
                return self._judge.url

        return Service(connect, MODEL, MODEL)


class LocalPlace(Place):
    """Your own vLLM and judge; training on this machine. vLLM must see the store's folder under the same path."""

    def server(self, models: Models) -> Server:
        return self.running_server()

    def serves(self, current: Path) -> bool:
        server = self.running_server()
        return VLLM(server.url, server.api_key).models().get(server.name) == str(current)

    def running_server(self) -> Server:
        """The user's vLLM, which runs whether we do or not."""
        key, base = self.environment.serve_api_key, Path(self.settings.place.base_model or "")
        return Server(
            self.settings.place.serve_url or self.environment.serve_url,
            self.settings.sampling.model,
            base if (base / "config.json").is_file() else None,
            key.get_secret_value() if key else None,
        )

    def judge(self) -> Service:
        settings = self.settings
        url = settings.place.judge_url or self.environment.openai_base_url
        return Service(lambda: url, settings.judge.model, settings.judge.model, self.environment.openai_api_key)

    def starting_adapter(self) -> dict[str, Path]:
        """The two files of the user's SFT adapter."""
        place = self.settings.place
        folder = Path(place.sft_adapter) if place.sft_adapter else self.environment.sft_adapter_path
        return {name: folder / name for name in (CONFIG, "adapter_model.safetensors")}

    def base(self) -> Base:
        """The user's base model. Raises FatalError as `known_base`."""
        return known_base(self.settings.place.base_model or "", self.settings.place.base_revision)


def open_place(settings: Settings) -> EmbeddedPlace | LocalPlace:
    """The place that the settings name.

    Raises:
        FatalError: the data folder cannot be used, or the adapter that is current there belongs to another place, whose
            base model it fits and whose server serves it.
    """
    place = EmbeddedPlace(settings) if settings.place.kind == "embedded" else LocalPlace(settings)
    current = read_registry(place.workshop.store).current_version
    if current and current.place != settings.place.kind:
        raise FatalError(
            f"{current.name} version {current.version} in {settings.place.data} was promoted in place {current.place}; "
            "give its settings with --settings, or use another place.data"
        )
    return place
