"""The engines of a run: what a place provides, started when it is first asked and ended with the run.

This is where the rooms of the library meet; no stage knows which place it works in.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prefect import get_run_logger

from nothing_gpt.adapters import adapter_digest, validate_adapter
from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.bases import Base, known_base
from nothing_gpt.config import Environment, Settings
from nothing_gpt.dpo import train as training
from nothing_gpt.dpo.order import train_elsewhere
from nothing_gpt.embedded.judge import MODEL, OfflineJudge
from nothing_gpt.embedded.serving import LocalVLLM
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.given import ADAPTER, adapter_files, prompts_file
from nothing_gpt.jobs.kube.manifest import manifest
from nothing_gpt.jobs.local import run_module
from nothing_gpt.named_copies import name_copy
from nothing_gpt.processes import Run
from nothing_gpt.progress import say
from nothing_gpt.records import digest
from nothing_gpt.replicas import addresses
from nothing_gpt.serve.fetch import CURRENT
from nothing_gpt.serve.promote import adapter_of, current_folder
from nothing_gpt.serve.registry import read_registry
from nothing_gpt.serve.switch import Redeployed, Server, versioned_name
from nothing_gpt.store import Store, open_bucket
from nothing_gpt.vllm_admin import VLLM
from nothing_gpt.workshops import open_workshop
from tasks.credentials import place_credentials
from tasks.limits import permit

if TYPE_CHECKING:
    from google.auth.credentials import Credentials


@dataclass(frozen=True)
class Models:
    """What a run starts from: the base model and the starting adapter."""

    base: Base
    start: Artifact


def on_each(replicas: Sequence[Server], act: Callable[[Server], object]) -> None:
    """Acts on each; those that do not answer are left to themselves. Raises TransientError where none answers."""
    silent = []
    for replica in replicas:
        try:
            act(replica)
        except TransientError as error:
            silent.append(error)
    if len(silent) == len(replicas):
        raise silent[0]
    for error in silent:
        say(f"going on without a replica: {error}")


class Place:
    """The engines of one run. A context manager that ends whatever it started."""

    run: Run = staticmethod(run_module)
    """How a training is run that is no Job."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.logs = Path(settings.place.data) / "logs"
        self.environment = Environment()
        self._stack = ExitStack()

    @cached_property
    def credentials(self) -> "Credentials | None":
        """Google Cloud's, None for the default ones. Raises as `place_credentials`."""
        return place_credentials(self.settings.place)

    @cached_property
    def workshop(self) -> Workshop:
        """The place's artifacts. Raises as `open_workshop` and `place_credentials`."""
        return open_workshop(self.settings.place, self.credentials)

    def bucket(self, uri: str) -> Store:
        """A folder of any bucket. Raises as `open_bucket` and `place_credentials`."""
        return open_bucket(uri, self.credentials, Path(self.settings.place.data).absolute() / "cache")

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

    def train(self, models: Models, pairs: Artifact) -> Artifact:
        """The adapter trained on the pairs. Raises as `nothing_gpt.dpo.train.train`."""
        return training.train(self.workshop, pairs, models.start, models.base, self.settings.training, self.run)

    def name_copy(self, stage: str, key: str | None) -> None:
        """Keeps the guide's name for a stage's artifact up to date, where others see it (see `named_copies.py`)."""

    def prompts_files(self, addresses: Sequence[str]) -> list[Path]:
        """The files of prompts at these addresses, on this machine. Raises as `given.prompts_file`."""
        return [prompts_file(self.workshop, address, self.bucket) for address in addresses]

    def start(self, sft: Artifact) -> Artifact:
        """What the round starts from: the SFT adapter, or the promoted version that `training.starting_version` names.

        Raises:
            FatalError: there is no such version, or its files are gone.
        """
        number = self.settings.training.starting_version
        if number == 0:
            return sft
        version = read_registry(self.workshop.store).version(number)
        if version is None:
            raise FatalError(
                f"training.starting_version: no promoted version {number} here; see `nothing-gpt adapters list`"
            )
        return adapter_of(self.workshop, version)

    def adapter(self, models: Models, artifact: Artifact) -> Service:
        """One adapter's endpoint, under a versioned name: whatever is promoted later, the name means this one."""
        folder = self.workshop.folder(artifact)
        weights = adapter_digest(folder)
        name = versioned_name(self.settings.sampling.model, weights)

        def connect() -> str:
            replicas = [one for one in self.server(models).each if not isinstance(one, Redeployed)]
            on_each(replicas, lambda one: one.ready(self.workshop.store, folder))
            return ",".join(one.url for one in replicas)

        identity = f"{weights} on {models.base.identity}"
        return Service(connect, name, identity, self.environment.serve_api_key)


class Engines:
    """The processes of embedded places, each started when it is first asked for. A context manager that ends them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stack = ExitStack()
        self.vllm: LocalVLLM | None = None
        self.judge: OfflineJudge | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()


_shared: ContextVar[Engines | None] = ContextVar("shared engines", default=None)


@contextmanager
def sharing_engines() -> Iterator[None]:
    """Embedded places that are opened meanwhile, of one base model, have one vLLM and one judge: a vLLM takes half a
    minute to start."""
    with Engines() as engines:
        token = _shared.set(engines)
        try:
            yield
        finally:
            _shared.reset(token)


class EmbeddedPlace(Place):
    """Everything is made and started here: a tiny base, a vLLM on the CPU, an offline judge."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._engines = _shared.get() or self._stack.enter_context(Engines())

    def server(self, models: Models) -> Server:
        engines = self._engines
        with engines.lock:
            name = self.settings.sampling.model
            if engines.vllm is None:
                vllm = LocalVLLM(Path(models.base.location), self.logs / "vllm.log")
                engines.vllm = engines.stack.enter_context(vllm)
                current = current_folder(self.workshop, self.workshop.folder(models.start))
                VLLM(engines.vllm.base_url).load(name, str(current))
            return Server(engines.vllm.base_url, name, Path(models.base.location))

    def serves(self, current: Path) -> bool:
        return True  # `server` starts with it

    def judge(self) -> Service:
        def connect() -> str:
            engines = self._engines
            with engines.lock:
                engines.judge = engines.judge or engines.stack.enter_context(OfflineJudge())
                return engines.judge.url

        return Service(connect, MODEL, MODEL)


class LocalPlace(Place):
    """Your own vLLM and judge; training on this machine. vLLM must see the store's folder under the same path."""

    def server(self, models: Models) -> Server:
        return self.running_server()

    def serves(self, current: Path) -> bool:
        return not self.running_server().strays(current)

    def running_server(self) -> Server:
        """The user's vLLM with its replicas, which run whether we do or not."""
        place, key = self.settings.place, self.environment.serve_api_key
        base = Path(place.base_model or "")
        first, *others = [
            Server(
                url,
                self.settings.sampling.model,
                base if (base / "config.json").is_file() else None,
                key.get_secret_value() if key else None,
                place.adapters_path,
            )
            for url in addresses(place.serve_url or self.environment.serve_url)
        ]
        link = None if place.adapters_path else Path(place.data).absolute() / CURRENT
        return replace(first, replicas=tuple(others), link=link)

    def judge(self) -> Service:
        settings = self.settings
        url, limit = settings.place.judge_url or self.environment.openai_base_url, settings.scale.judge_limit
        name, key = settings.judge.model, self.environment.openai_api_key
        return Service(lambda: url, name, name, key, permit(limit) if limit else None)

    def starting_adapter(self) -> dict[str, Path]:
        """The two files of the user's SFT adapter, on this machine. Raises as `given.adapter_files`."""
        address = self.settings.place.sft_adapter or str(self.environment.sft_adapter_path)
        return adapter_files(self.workshop, address, self.bucket)

    def adopted(self) -> Artifact:
        """The user's SFT adapter, checked and kept as an artifact. Raises FatalError where it is none."""
        files = self.starting_adapter()
        validate_adapter(next(iter(files.values())).parent)
        return self.workshop.adopt(ADAPTER, files)

    def base(self) -> Base:
        """The user's base model. Raises FatalError as `known_base`."""
        return known_base(self.settings.place.base_model or "", self.settings.place.base_revision)


class ModalPlace(LocalPlace):
    """As local, but training runs on Modal."""

    def __init__(self, settings: Settings):
        from nothing_gpt.jobs.modal import modal_run  # an extra

        super().__init__(settings)
        self.run = modal_run(settings.place.modal, settings.training.gpus)

    def running_server(self) -> Server:
        """As in the place local; the vLLM on Modal, where its address is given, is one more replica."""
        from nothing_gpt.jobs.modal_serve import ADAPTERS, Endpoint

        server, place = super().running_server(), self.settings.place
        if place.modal.serve_url is None:
            return server
        endpoint = Endpoint(place.modal, place.base_model or "", place.base_revision)
        there = Redeployed(
            place.modal.serve_url, server.name, server.base, server.api_key, ADAPTERS,
            deploy=endpoint.deploy, deployed=endpoint.deployed,
        )  # fmt: skip
        return replace(server, replicas=(*server.replicas, there))


class GKEPlace(LocalPlace):
    """As local, but all results are in the bucket, for every machine, and training is a Job on a GKE cluster. vLLM must
    see the data folder under the same path, to which what it loads is fetched, or have a fetcher of its own
    (place.adapters_path)."""

    @cached_property
    def image(self) -> Artifact:
        """The training image, found or built: `uri` is the reference by which the Job gets it. No fingerprint of ours
        depends on it: a pod whose code would make something else refuses. Raises as `jobs.image.ensure` and `manifest`,
        which the Job needs too."""
        from nothing_gpt.jobs.image import ensure  # an extra

        gke, store = self.settings.place.gke, self.workshop.store.uri
        manifest(gke, "", store, "")  # whether it can be filled in shows now, not after hours of sampling
        there = self.image_there()
        reference = there or ensure("train", gke.registry or "", store, self.credentials)
        return Artifact(reference, "image", digest(reference)[:16], digest(reference), reused=there is not None)

    def image_there(self) -> str | None:
        """The training image's reference, None where it has to be built. Raises as `jobs.image.found`."""
        from nothing_gpt.jobs.image import found  # an extra

        return found(self.settings.place.gke, self.credentials)

    def train(self, models: Models, pairs: Artifact) -> Artifact:
        return train_elsewhere(self.workshop, pairs, models.start, models.base, self.settings.training, self.run_job)

    def run_job(self, fingerprint: str) -> None:
        """Has the order for `train/<fingerprint>` fulfilled by a Job, whose log comes to the terminal and to Prefect.
        A Job that ended well before is no answer: its artifact is gone. Raises as `image` and `GKE.run`."""
        from nothing_gpt.jobs.gke import GKE  # an extra

        place, store = self.settings.place, self.workshop.store.uri
        log = get_run_logger()

        def show(line: str) -> None:
            say(line)
            log.info(line)

        gpus, nodes = self.settings.training.gpus, self.settings.training.nodes
        GKE(place.gke, on_line=show).run(fingerprint, store, self.image.uri, True, gpus, nodes)

    def name_copy(self, stage: str, key: str | None) -> None:
        name_copy(self.workshop, stage, key)


def make_place(settings: Settings) -> EmbeddedPlace | LocalPlace:
    """The place that the settings name."""
    places = {"embedded": EmbeddedPlace, "gke": GKEPlace, "modal": ModalPlace}
    return places.get(settings.place.kind, LocalPlace)(settings)


def open_place(settings: Settings) -> EmbeddedPlace | LocalPlace:
    """The place that the settings name, for a run in it.

    Raises:
        FatalError: its store cannot be used, or the adapter that is current there belongs to another place, whose
            base model it fits and whose server serves it.
    """
    place = make_place(settings)
    current = read_registry(place.workshop.store).current_version
    if current and current.place != settings.place.kind:
        raise FatalError(
            f"{current.name} version {current.version} in {place.workshop.store.uri} was promoted in place "
            f"{current.place}; give its settings with --settings, or use another place.data or place.bucket"
        )
    return place
