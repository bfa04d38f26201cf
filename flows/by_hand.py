"""Promoting an adapter by hand: a version that was current before, or an artifact that a run's gate has passed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.record import FOLDER
from flows.serving import base_of, called, first_of, found, named_server, starting
from nothing_gpt.adapters import adapter_digest
from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.bases import Base
from nothing_gpt.config import Settings
from nothing_gpt.errors import FatalError
from nothing_gpt.results import training_metrics
from nothing_gpt.serve.promote import Candidate, adapter_of, current_folder, promote
from nothing_gpt.serve.registry import Approval, Registry, Version, read_registry
from nothing_gpt.serve.switch import Server
from tasks.place import EmbeddedPlace, LocalPlace, Models, open_place


def promote_by_hand(settings: Settings, wanted: str, approval: Approval, without_gate: bool) -> Version:
    """Promotes `wanted`, a version's number or an adapter's artifact, as a new version. An artifact that never was
    current must have passed the gate of a run, which compared it with what is served now; or it goes `without_gate`,
    and its reasons say so.

    Raises:
        FatalError: there is no such version or artifact, the gate has not passed it, or as `nothing_gpt.serve.promote`.
    """
    with open_place(settings) as place:
        workshop = place.workshop
        registry = read_registry(workshop.store)
        version = _registered(registry, wanted)
        artifact = adapter_of(workshop, version) if version else found(workshop, wanted)
        start, server = _server(place, artifact)
        if version:
            reasons = [*version.reasons, f"promoted by hand, as version {version.version} was"]
            facts: dict[str, Any] = {"metrics": version.metrics, "reasons": reasons, "lineage": version.lineage}
        elif without_gate:
            facts = {"metrics": {}, "reasons": ["promoted by hand without the gate"]}
        else:
            facts = _facts(workshop, artifact, adapter_digest(current_folder(workshop, start)), registry)
        folder, kind = workshop.folder(artifact), settings.place.kind
        candidate = Candidate(folder, artifact.key, artifact.fingerprint, kind, approval=approval, **facts)
        promoted = promote(workshop, candidate, start, server, registry.current)
        place.name_copy("promote", promoted.artifact)
        return promoted


def _server(place: EmbeddedPlace | LocalPlace, artifact: Artifact) -> tuple[Path, Server]:
    """The starting adapter and the place's server; where none runs one is started, for the adapter to prove itself."""
    if isinstance(place, LocalPlace):
        return starting(place), named_server(place)
    workshop = place.workshop
    base = found(workshop, base_of(workshop, artifact.key))
    start = first_of(workshop, artifact.key) or artifact
    return workshop.folder(start), place.server(Models(Base(str(workshop.folder(base)), base.digest), start))


def _registered(registry: Registry, wanted: str) -> Version | None:
    """The version with this number, or the latest with this artifact."""
    if "/" in wanted:
        return next((version for version in reversed(registry.versions) if version.artifact == wanted), None)
    version = registry.version(int(wanted)) if wanted.isdecimal() else None
    if version is None:
        raise FatalError(f"adapters promote: no version {wanted!r}; `nothing-gpt adapters list` names them")
    return version


def _facts(workshop: Workshop, artifact: Artifact, served: str, registry: Registry) -> dict[str, Any]:
    """What the latest run whose gate looked at the adapter found: metrics, reasons, lineage.

    Raises:
        FatalError: there is none, the gate refused it, it saw other weights under this key, or it compared them with
            another adapter than the one with the digest `served`, which is current.
    """
    key, instead = artifact.key, "run again, or promote it with --without-gate"
    run = next(filter(lambda run: _looked_at(run, key), _runs(workshop)), None)
    if run is None:
        raise FatalError(f"adapters promote: no run's gate has looked at {key}; {instead}")
    name, reasons = run["run"], run["gate"]["reasons"]
    if not run["gate"]["passed"]:
        failed = "; ".join(reason["text"] for reason in reasons if not reason["passed"])
        raise FatalError(f"adapters promote: the gate of {name} refused {key} ({failed}); {instead}")
    evaluation = workshop.manifest(run["stages"]["evaluate"]["artifact"])
    compared = evaluation.settings["references"].values() if evaluation else ()
    weights = adapter_digest(workshop.folder(artifact))
    if evaluation and not evaluation.settings["candidate"].startswith(weights):
        raise FatalError(f"adapters promote: the gate of {name} compared other weights of {key}; {instead}")
    if not any(identity.startswith(served) for identity in compared):
        current = called(registry.current_version)
        raise FatalError(
            f"adapters promote: the gate of {name} did not compare {key} with {current}, which serves now; {instead}"
        )
    accuracy = training_metrics(workshop, artifact)["eval_accuracy"]
    return {
        "metrics": {"eval_accuracy": accuracy, "win_rate": run["win_rate"]["value"]},
        "reasons": [*(reason["text"] for reason in reasons), f"promoted by hand after {name}"],
        "lineage": {stage: done["artifact"] for stage, done in run["stages"].items() if done["artifact"]},
    }


def _looked_at(run: dict[str, Any], key: str) -> bool:
    return bool(run.get("gate")) and run["stages"].get("train", {}).get("artifact") == key


def _runs(workshop: Workshop) -> Iterator[dict[str, Any]]:
    """The summaries of all runs, the latest first. Raises FatalError for a damaged one: it may tell of a refusal."""
    store = workshop.store
    for key in reversed([key for key in store.list(FOLDER) if key.endswith("/summary.json")]):
        try:
            yield json.loads(store.read(key) or b"{}")
        except ValueError:
            raise FatalError(
                f"{store.uri}/{key}: damaged, so what its gate said is unknown; delete it and run again, or promote it "
                "with --without-gate"
            ) from None
