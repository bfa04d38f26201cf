"""Promoting an adapter by hand: a version that was current before, or an artifact that a run's gate has passed."""

import json
from typing import Any

from flows.record import FOLDER
from flows.serving import base_of, called, found, named_server, starting
from nothing_gpt.adapters import adapter_digest
from nothing_gpt.artifacts import Workshop
from nothing_gpt.bases import Base
from nothing_gpt.config import Settings
from nothing_gpt.errors import FatalError
from nothing_gpt.results import training_metrics
from nothing_gpt.serve.promote import Candidate, current_folder, promote
from nothing_gpt.serve.registry import Approval, Registry, Version, read_registry
from tasks.place import LocalPlace, Models, open_place


def promote_by_hand(settings: Settings, wanted: str, approval: Approval, without_gate: bool) -> Version:
    """Promotes `wanted`, a version's number or an adapter's artifact, as a new version. An artifact that never was
    current must have passed the gate of a run, which compared it with what is served now; or it goes `without_gate`,
    and its reasons say so.

    Raises:
        FatalError: there is no such version or artifact, the gate has not passed it, or as `nothing_gpt.serve.promote`.
    """
    with open_place(settings) as place:
        workshop, kind = place.workshop, settings.place.kind
        registry = read_registry(workshop.store)
        version = _registered(registry, wanted)
        artifact = found(workshop, version.artifact if version else wanted)
        if isinstance(place, LocalPlace):
            start, server = starting(place), named_server(place)
        else:  # one is started, and the adapter proves itself there
            base = found(workshop, base_of(workshop, artifact.key))
            made = workshop.manifest(artifact.key)
            first = found(workshop, made.lineage["adapter"]) if made else artifact
            start = workshop.folder(first)
            server = place.server(Models(Base(str(workshop.folder(base)), base.digest), first))
        metrics: dict[str, Any] = {}
        lineage: dict[str, str] = {}
        if version:
            metrics, lineage = version.metrics, version.lineage
            reasons = [*version.reasons, f"promoted by hand, as version {version.version} was"]
        elif without_gate:
            reasons = ["promoted by hand without the gate"]
        else:
            served = current_folder(workshop, start)
            run = _passed(workshop, artifact.key, adapter_digest(served), called(registry.current_version))
            lineage = {name: stage["artifact"] for name, stage in run["stages"].items() if stage["artifact"]}
            accuracy = training_metrics(workshop, artifact)["eval_accuracy"]
            metrics = {"eval_accuracy": accuracy, "win_rate": run["win_rate"]["value"]}
            reasons = [*(reason["text"] for reason in run["gate"]["reasons"]), f"promoted by hand after {run['run']}"]
        folder, fingerprint = workshop.folder(artifact), artifact.fingerprint
        candidate = Candidate(folder, artifact.key, fingerprint, kind, metrics, reasons, approval, lineage)
        promoted = promote(workshop, candidate, start, server, replaces=registry.current)
        place.name_copy("promote", promoted.artifact)
        return promoted


def _registered(registry: Registry, wanted: str) -> Version | None:
    """The version with this number, or the latest with this artifact."""
    if "/" in wanted:
        return next((version for version in reversed(registry.versions) if version.artifact == wanted), None)
    version = registry.version(int(wanted)) if wanted.isdecimal() else None
    if version is None:
        raise FatalError(f"adapters promote: no version {wanted!r}; `nothing-gpt adapters list` names them")
    return version


def _passed(workshop: Workshop, key: str, served: str, called: str) -> dict[str, Any]:
    """The summary of the latest run whose gate looked at the adapter.

    Raises:
        FatalError: there is none, the gate refused it, or it compared it with another adapter than the one with the
            digest `served`.
    """
    instead = "run again, or promote it with --without-gate"
    run = next(filter(lambda run: _looked_at(run, key), _runs(workshop)), None)
    if run is None:
        raise FatalError(f"adapters promote: no run's gate has looked at {key}; {instead}")
    if not run["gate"]["passed"]:
        failed = [reason["text"] for reason in run["gate"]["reasons"] if not reason["passed"]]
        raise FatalError(f"adapters promote: the gate of {run['run']} refused {key} ({'; '.join(failed)}); {instead}")
    evaluation = workshop.manifest(run["stages"]["evaluate"]["artifact"])
    compared = evaluation.settings["references"].values() if evaluation else ()
    if not any(identity.startswith(served) for identity in compared):
        raise FatalError(f"adapters promote: the gate of {run['run']} did not compare {key} with {called}, which is "
                         f"current now; {instead}")  # fmt: skip
    return run


def _looked_at(run: dict[str, Any], key: str) -> bool:
    return bool(run["gate"]) and run["stages"].get("train", {}).get("artifact") == key


def _runs(workshop: Workshop) -> Any:
    """The summaries of all runs, the latest first."""
    keys = [key for key in workshop.store.list(FOLDER) if key.endswith("/summary.json")]
    return (json.loads(workshop.store.read(key) or b"{}") for key in reversed(keys))
