"""A training on another machine: what it is told through the store that both have, one small object and the base model.

The order names the artifacts to train from; it holds no data and no secret. Its place in the store is the fingerprint
of the artifact that is wanted, which the other machine works out itself: so an image of another version than the flow's
is noticed. A base model that is a folder is copied into the store once, whole or not at all; one of a hub is downloaded
once, by the first machine that needs it. How the other machine is had is no concern of this file.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from nothing_gpt.artifacts import Artifact, Stage, Workshop, lease
from nothing_gpt.bases import MODEL_FILES, Base, known_base, model_files
from nothing_gpt.checkpoints import COMPLETE, surviving_store
from nothing_gpt.config import TrainingSettings
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.progress import say
from nothing_gpt.records import file_digest
from nothing_gpt.store import Store, open_store, reporting_disk

STAGE = Stage("train", 3)
UNFINGERPRINTED = {"starting_version", "save_steps", "logging_steps", "eval_steps", "per_device_eval_batch_size"}
UNFINGERPRINTED |= {"gpus", "nodes"}
"""Settings that change how training is watched and on how many machines it is, and not what comes of it: an update has
the same pairs. The starting adapter is an input."""
JOBS = "jobs"
BASES = "bases"


class Order(BaseModel):
    """One training: keys of the pairs and of the starting adapter in the store, the base model, the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: str
    adapter: str
    base: Base
    training: TrainingSettings


class Train(Protocol):
    """`train.train`, but for how it is run; or `train.take_part`, which makes no artifact."""

    def __call__(
        self, workshop: Workshop, pairs: Artifact, adapter: Artifact, base: Base, settings: TrainingSettings
    ) -> Artifact | None: ...


def fingerprinted(settings: TrainingSettings, base: Base) -> dict[str, Any]:
    """The settings of a training as they are part of its fingerprint."""
    return settings.model_dump(exclude=UNFINGERPRINTED) | {"base": base.identity}


def train_elsewhere(
    workshop: Workshop,
    pairs: Artifact,
    adapter: Artifact,
    base: Base,
    settings: TrainingSettings,
    ask: Callable[[str], None],
) -> Artifact:
    """As `train.train`, on another machine: `ask` is given the fingerprint, has it `fulfil` the order, and returns when
    that has ended well.

    Raises:
        FatalError: the base model's folder has changed since the run began, or `ask` left no whole artifact. Whatever
            `ask` raises.
    """

    def order(fingerprint: str) -> None:
        if base.revision is None:
            _keep_folder(workshop.store, base)
        written = Order(pairs=pairs.key, adapter=adapter.key, base=base, training=settings)
        workshop.store.write(_order_key(fingerprint), written.model_dump_json(indent=1).encode())
        ask(fingerprint)

    return workshop.made_elsewhere(STAGE, fingerprinted(settings, base), {"pairs": pairs, "adapter": adapter}, order)


def fulfil(address: str, job: str, work: Path, train: Train) -> Artifact | None:
    """Does here what the order for the artifact `train/<job>` in the store says. `work` is a folder for scratch files
    and for what is fetched.

    Raises:
        FatalError: there is no order, what it names is not there, or this version would make another artifact of it;
            and as `train`. TransientError as `train`.
    """
    os.environ.setdefault("XDG_CACHE_HOME", str(work.absolute() / "cache"))
    workshop = Workshop(open_store(address), work.absolute())
    order = read_order(workshop.store, job)
    pairs, adapter = (_named(workshop, key) for key in (order.pairs, order.adapter))
    mine = workshop.fingerprint(STAGE, fingerprinted(order.training, order.base), {"pairs": pairs, "adapter": adapter})
    if mine != job:
        raise FatalError(
            f"train: image and flow are of different versions: the flow wants {STAGE.name}/{job}, this image would "
            f"make {STAGE.name}/{mine}; use an image of the flow's version"
        )
    done = workshop.find(STAGE.name, job)
    base = order.base if done else bring_base(workshop.store, order.base, work)
    return train(workshop, pairs, adapter, base, order.training)


def read_order(store: Store, fingerprint: str) -> Order:
    """The order for an artifact. Raises FatalError where there is none that this version understands."""
    key = _order_key(fingerprint)
    data = store.read(key)
    if data is None:
        raise FatalError(f"{store.uri}/{key}: no such order; `nothing-gpt run` writes it, and then asks for this job")
    try:
        return Order.model_validate_json(data)
    except ValidationError as error:
        wrong = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise FatalError(
            f"{store.uri}/{key}: cannot be understood (at {wrong or 'its beginning'}): image and flow are of different "
            "versions; use an image of the flow's version"
        ) from None


def _named(workshop: Workshop, key: str) -> Artifact:
    """An artifact that an order names. Raises FatalError where it is not whole in the store."""
    found = workshop.find(*key.split("/", 1))
    if found is None:
        raise FatalError(
            f"{workshop.store.uri}/{key}: not there, or damaged; `nothing-gpt run` makes it again, and then this"
        )
    return found


def bring_base(store: Store, base: Base, work: Path) -> Base:
    """The base model in a local folder: the store's copy, else a hub's, which the store then has too. HF_TOKEN in the
    environment opens a private one.

    Raises:
        FatalError: it is not in the store and on no hub, or may not be downloaded.
        TransientError: the hub cannot be reached.
    """
    folder = _kept(store, base)
    if folder is None and base.revision is None:
        store.delete(f"{_key(base)}/{COMPLETE}")  # so that it is put there anew
        raise FatalError(
            f"{store.uri}/{_key(base)}: the base model is not whole there; `nothing-gpt run` puts it there again"
        )
    if folder is None:
        with lease(store, _lease(base)):
            folder = _kept(store, base)  # another job's, which we waited for
            if folder is None:
                folder = _downloaded(base, work / "base")
                with surviving_store("the base model"):
                    _keep(store, base, folder)
    return replace(base, location=str(folder))


def base_folder(identity: str) -> str:
    """Folder of a base model in the store."""
    return f"{BASES}/{identity.replace('/', '--')}"


def _order_key(fingerprint: str) -> str:
    return f"{JOBS}/{fingerprint}/order.json"


def _key(base: Base) -> str:
    return base_folder(base.identity)


def _lease(base: Base) -> str:
    return f"leases/{_key(base).replace('/', '-')}"


def _keep_folder(store: Store, base: Base) -> None:
    """Copies a folder of this machine into the store, if it is not there yet."""
    marker = f"{_key(base)}/{COMPLETE}"
    if store.read(marker) is None:
        with lease(store, _lease(base)):
            if store.read(marker) is None:
                if known_base(base.location, None) != base:
                    raise FatalError(f"place.base_model: {base.location} has changed since the run began; run again")
                _keep(store, base, Path(base.location).expanduser())


def _keep(store: Store, base: Base, folder: Path) -> None:
    """Copies the model's files into the store, the marker last."""
    say(f"train: the base model goes to {store.uri}/{_key(base)}, once")
    files = model_files(folder)
    checksums = {file.name: file_digest(file) for file in files}
    for file in files:
        store.upload(file, f"{_key(base)}/{file.name}")
    store.write(f"{_key(base)}/{COMPLETE}", json.dumps(checksums).encode())


def _kept(store: Store, base: Base) -> Path | None:
    """A local folder with the store's copy, None where there is no whole one."""
    marker = store.read(f"{_key(base)}/{COMPLETE}")
    if marker is None:
        return None
    try:
        files = {store.fetch(f"{_key(base)}/{name}"): checksum for name, checksum in json.loads(marker).items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return None
    if not files or any(file_digest(file) != checksum for file, checksum in files.items()):
        return None
    return next(iter(files)).parent


def _downloaded(base: Base, folder: Path) -> Path:
    """The hub's files at the model's commit; a download that was broken off goes on."""
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    say(f"train: downloading {base.location} at {base.revision}")
    patterns = [f"*{ending}" for ending in MODEL_FILES]
    try:
        with reporting_disk(folder):
            snapshot_download(
                base.location,
                revision=base.revision,
                local_dir=folder,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
            )
    except (httpx2.HTTPError, OSError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (400, 401, 403, 404):  # one that may not be seen is not found
            raise FatalError(
                f"train: {base.location} at {base.revision} cannot be had from the hub ({_first_line(error)}); check "
                "name and commit, and for a private model its licence and HF_TOKEN"
            ) from None
        raise TransientError(f"train: {base.location} cannot be downloaded now ({_first_line(error)})") from None
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
