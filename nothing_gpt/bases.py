"""A base model, known by what it is and not by where it lies."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from nothing_gpt.errors import FatalError
from nothing_gpt.records import digest, file_digest

WEIGHTS = {".safetensors", ".bin"}
MODEL_FILES = {".json", ".jinja", ".model", ".txt"} | WEIGHTS
"""Endings of the files that a base model is loaded from: weights, configuration, tokenizer."""
PIECE, PIECES = 1 << 16, 64
"""Bytes of a sample, and samples of a file: one of up to 4 MiB is read whole."""


@dataclass(frozen=True)
class Base:
    """A base model: a folder or hub name to load it from, what it is, whatever its address, a hub model's commit."""

    location: str
    identity: str
    revision: str | None = None


def known_base(location: str, revision: str | None) -> Base:
    """A base model by what it is: a hub model by its name and commit, a folder by its configuration, tokenizer and
    chat template and, lest gigabytes be read at every run, by size and samples of its weights.

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


def model_files(folder: Path) -> list[Path]:
    """The files that a base model is loaded from: weights, configuration, tokenizer."""
    return [file for file in sorted(folder.iterdir()) if file.suffix in MODEL_FILES and file.is_file()]


def _identity(folder: Path) -> str:
    return digest(
        {
            file.name: [file.stat().st_size, _sampled(file)] if file.suffix in WEIGHTS else file_digest(file)
            for file in model_files(folder)
        }
    )


def _sampled(path: Path) -> str:
    """A checksum of pieces that lie evenly spread over a file, from its first byte to its last."""
    checksum, last = hashlib.sha256(), max(path.stat().st_size - PIECE, 0)
    with path.open("rb") as file:
        for i in range(PIECES):
            file.seek(last * i // (PIECES - 1))
            checksum.update(file.read(PIECE))
    return checksum.hexdigest()
