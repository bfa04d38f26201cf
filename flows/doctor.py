"""What is installed, reachable and missing, and what each lack prevents."""

import asyncio
import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from flows.findings import Finding, within_limit
from nothing_gpt.config import EndpointSettings, Environment, Settings
from nothing_gpt.embedded.serving import server_python
from nothing_gpt.endpoint import Endpoint, Service
from nothing_gpt.errors import NothingGPTError
from nothing_gpt.replicas import addresses
from nothing_gpt.store import Store, open_store
from nothing_gpt.vllm_admin import VLLM
from nothing_gpt.workshops import IN_BUCKET, bucket_workshop
from tasks.credentials import place_credentials

NEEDED_GIB = 2
TRAIN_ELSEWHERE = {"gke", "modal"}
"""Kinds of places in which nothing is trained on this machine."""


def examine(settings: Settings) -> list[Finding]:
    """All checks of the place that the settings name."""
    return [
        *_packages(settings.place.kind not in TRAIN_ELSEWHERE),
        *_data(Path(settings.place.data)),
        *_bucket(settings),
        *(_cluster(settings) if settings.place.kind == "gke" else ()),
        *(_embedded() if settings.place.kind == "embedded" else _endpoints(settings)),
    ]


def _packages(training: bool) -> Iterator[Finding]:
    needed = {"prefect": "running the chain", "openai": "sampling and judging"}
    if training:
        needed |= dict.fromkeys(("torch", "trl", "peft"), "training")
    for package, prevents in needed.items():
        yield Finding(
            f"package {package}", importlib.util.find_spec(package) is not None, f"prevents {prevents}; run `make env`"
        )
    if training and importlib.util.find_spec("torch"):
        import torch

        yield Finding(
            f"training device: {'CUDA' if torch.cuda.is_available() else 'CPU (no nf4; tiny models only)'}", True
        )


def _data(data: Path) -> Iterator[Finding]:
    try:
        store = open_store(str(data / "store"))
        _probe(store)
        yield Finding(f"store {store.uri}", True)
        free = shutil.disk_usage(data).free / 2**30
        yield Finding(f"disk: {free:.0f} GiB free", free > NEEDED_GIB, f"a run needs {NEEDED_GIB} GiB; make room")
    except NothingGPTError as error:
        yield Finding(f"store {data / 'store'}", False, f"prevents everything; {error}")


def _bucket(settings: Settings) -> Iterator[Finding]:
    place = settings.place
    if place.bucket is None and place.kind not in IN_BUCKET:
        return
    what = f"bucket {place.bucket or ''}".rstrip()
    try:
        within_limit(lambda: _probe(bucket_workshop(place, place_credentials(place)).store))
        yield Finding(what, True)
    except NothingGPTError as error:
        prevents = "everything" if place.kind in IN_BUCKET else "push and pull"
        yield Finding(what, False, f"prevents {prevents}; {error}")


def _probe(store: Store) -> None:
    """Does all that a run does with a store."""
    store.swap("probe", b"", store.read("probe"))
    list(store.list("probe"))
    store.delete("probe")


def _embedded() -> Iterator[Finding]:
    try:
        yield Finding(f"vLLM's environment {server_python()}", True)
    except NothingGPTError as error:
        yield Finding("vLLM's environment", False, f"prevents sampling, evaluation and promotion; {error}")


def _cluster(settings: Settings) -> Iterator[Finding]:
    if not importlib.util.find_spec("kubernetes"):
        yield Finding("package kubernetes", False, "prevents training; pip install 'nothing-gpt[gcp]'")
        return
    from flows.doctor_gke import examine_gke

    yield from examine_gke(settings)


def _endpoints(settings: Settings) -> Iterator[Finding]:
    place, environment = settings.place, Environment()
    serve_url, key = place.serve_url or environment.serve_url, environment.serve_api_key
    judge_url = place.judge_url or environment.openai_base_url
    forward = f"; `kubectl -n {place.gke.namespace} port-forward service/vllm 8000` brings the cluster's here"
    hint = forward if place.kind == "gke" else ""
    for url in addresses(serve_url):
        vllm = VLLM(url, key.get_secret_value() if key else None)
        yield _endpoint("vLLM", url, vllm.models, "sampling, evaluation and promotion", hint)
    for url in addresses(judge_url):
        judge = Service(lambda url=url: url, settings.judge.model, settings.judge.model, environment.openai_api_key)
        yield _endpoint("judge", url, lambda judge=judge: asyncio.run(_served(judge)), "judging and evaluation", "")


def _endpoint(what: str, url: str, served: Callable[[], Iterable[str]], prevents: str, hint: str) -> Finding:
    try:
        return Finding(f"{what} {url}: serves {', '.join(list(within_limit(served))[:5])}", True)
    except NothingGPTError as error:
        return Finding(f"{what} {url}", False, f"prevents {prevents}; {error}{hint}")


async def _served(service: Service) -> list[str]:
    async with Endpoint(service, EndpointSettings(concurrency=1), "judge") as endpoint:
        return await endpoint.served()
