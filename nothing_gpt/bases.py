"""A base model, known by what it is and not by where it lies."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from nothing_gpt.errors import FatalError
from nothing_gpt.records import digest, file_digest


@dataclass(frozen=True)
class Base:
    """A base model: a folder or hub name to load it from, what it is, whatever its address, a hub model's commit."""

    location: str
    identity: str
    revision: str | None = None


def known_base(location: str, revision: str | None) -> Base:
    """A base model by what it is: a hub model by its name and commit, a folder by its configuration and, lest gigabytes
    be read at every run, by size and first MiB of its weights.

    Raises:
        FatalError: a path that is no model's folder, or a hub name without a commit.
    """
    folder = Path(location).expanduser()
    if (folder / "config.json").is_file():
        return Base(str(folder), _identity(folder))
    if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", location) or location.startswith("."):
        raise FatalError(
            f"base model {location}: no folder with a config.json, and no hub name; correct place.base_model (without "
            "a flow: BASE_MODEL)"
        )
    if not revision:
        raise FatalError(
            f"base model {location}: a hub name, behind which a model may change; give the commit, as the model's page "
            "lists it under Files, History, in place.base_revision (without a flow: BASE_REVISION)"
        )
    return Base(location, f"{location}@{revision}", revision)


def _identity(folder: Path) -> str:
    weights = [
        [path.name, path.stat().st_size, hashlib.sha256(_first_mib(path)).hexdigest()]
        for path in sorted(folder.glob("*.safetensors"))
    ]
    return digest([file_digest(folder / "config.json"), *weights])


def _first_mib(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 20)
