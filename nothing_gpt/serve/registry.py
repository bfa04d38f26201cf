"""Which adapter versions were promoted, and which one is current: one small object in the store.

It changes by compare-and-swap only, so of two promotions at once one wins and the other is told.
"""

import time
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nothing_gpt.errors import FatalError
from nothing_gpt.store import Store

KEY = "registry.json"


class _Signed(BaseModel):
    """What a person decided: who, why and when."""

    model_config = ConfigDict(frozen=True)

    by: str
    reason: str
    at: float = Field(default_factory=time.time)
    """Unix time (s)."""


class Approval(_Signed):
    """Who approved a promotion, and why."""


class Rollback(_Signed):
    """Who took a version back, and why."""


class Version(BaseModel):
    """One promoted adapter: where its files are, what made it, and the figures it passed the gate with."""

    model_config = ConfigDict(frozen=True)

    version: int
    name: str
    """Stable name it is served under."""
    place: str
    """Kind of the place it was promoted in: there it can be served and taken back."""
    replaces: int | None
    """The version that was current until then, None for the starting adapter."""
    artifact: str
    """Key of its artifact in the store."""
    fingerprint: str
    digest: str
    """Digest of the adapter's weights and configuration."""
    metrics: dict[str, Any]
    reasons: list[str]
    promoted: float
    """Unix time (s)."""
    approval: Approval | None = None
    """None: nobody was asked."""
    lineage: dict[str, str] = {}
    """Stage and key of each artifact that led to it, from prompts to evaluation."""
    taken_back: Rollback | None = None
    """A version is taken back once at most: promoted again, the adapter is a new version."""


class Registry(BaseModel):
    """All versions, oldest first, and the number of the current one, None while the starting adapter serves."""

    model_config = ConfigDict(frozen=True)

    versions: list[Version] = []
    current: int | None = None

    @model_validator(mode="after")
    def _current_is_there(self) -> Self:
        if self.current is not None and self.current_version is None:
            raise ValueError("the current version is none of these")
        return self

    @property
    def current_version(self) -> Version | None:
        """The version that the stable name stands for, None for the starting adapter."""
        return self.version(self.current)

    @property
    def previous(self) -> int | None:
        """Number of the version that a rollback brings back, None for the starting adapter."""
        return self.current_version.replaces if self.current_version else None

    def version(self, number: int | None) -> Version | None:
        return next((version for version in self.versions if version.version == number), None)


def read_registry(store: Store) -> Registry:
    """The registry as it is now; an empty one where nothing was promoted yet. Raises FatalError for a damaged one."""
    return _parsed(store, store.read(KEY))


def _parsed(store: Store, data: bytes | None) -> Registry:
    try:
        return Registry() if data is None else Registry.model_validate_json(data)
    except ValidationError:
        raise FatalError(
            f"{store.uri}/{KEY}: damaged, so which adapters were promoted is unknown; put a good copy in its place, or "
            "delete it to begin again from the starting adapter"
        ) from None


def promoted(registry: Registry, **fields: Any) -> Registry:
    """The registry with one more version, made current."""
    number = len(registry.versions) + 1
    version = Version(version=number, replaces=registry.current, promoted=time.time(), **fields)
    return Registry(versions=[*registry.versions, version], current=number)


def rolled_back(registry: Registry, rollback: Rollback) -> Registry:
    """The registry with the version current again that the current one replaced, or none for the starting adapter.

    Raises:
        FatalError: nothing is current.
    """
    current = registry.current_version
    if current is None:
        raise FatalError("adapters rollback: no adapter is promoted, so there is nothing to take back")
    taken_back = current.model_copy(update={"taken_back": rollback})
    versions = [taken_back if version == current else version for version in registry.versions]
    return Registry(versions=versions, current=current.replaces)


def swap(store: Store, before: Registry, after: Registry) -> None:
    """Writes the registry if it is still what it was. Raises FatalError where another change came first."""
    if not store.swap(KEY, after.model_dump_json(indent=1).encode(), unchanged(store, before)):
        raise _changed(store)


def unchanged(store: Store, before: Registry) -> bytes | None:
    """The stored bytes of a registry that is still what it was. Raises FatalError where another change came first."""
    data = store.read(KEY)
    if before != _parsed(store, data):
        raise _changed(store)
    return data


def _changed(store: Store) -> FatalError:
    return FatalError(
        f"the current adapter changed meanwhile (version {read_registry(store).current} now); look at `nothing-gpt "
        "adapters list` and run again"
    )
