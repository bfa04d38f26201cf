"""Stage 1: completions in the guide's form, made once, and for the same replies the same bytes."""

import json
import os
import signal
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nothing_gpt.adapters import adapter_digest
from nothing_gpt.artifacts import Artifact, Stage, Workshop
from nothing_gpt.config import Environment, SamplingSettings
from nothing_gpt.dpo.generate_pairs import COMPLETIONS, SET_ASIDE, _identity, generate_pairs
from nothing_gpt.endpoint import Service
from nothing_gpt.errors import FatalError
from nothing_gpt.records import Prompt, read_jsonl, write_jsonl
from nothing_gpt.store import open_store
from tests.conftest import Start
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, last, says
from tests.fake_vllm import save_adapter, serving_adapters
from tests.samples import prompts

pytestmark = pytest.mark.usefixtures("hasty")
SETTINGS = SamplingSettings(max_failed_share=0.5)


def given(workshop: Workshop, count: int = 6) -> Artifact:
    def build(folder: Path) -> dict[str, int]:
        write_jsonl(folder / "prompts.jsonl", ({"prompt": prompt.messages} for prompt in prompts(count)))
        return {}

    return workshop.make(Stage("prompts", 1), {"count": count}, {}, build)


def test_rows_have_the_guides_form_and_the_prompts_order(workshop: Workshop, service: Service) -> None:
    made = generate_pairs(workshop, given(workshop), SETTINGS, service)
    rows = [row for _, row in read_jsonl(workshop.file(made, COMPLETIONS))]
    assert [row["prompt"] for row in rows] == [prompt.messages for prompt in prompts(6)]
    assert all(len(row["completions"]) == len(row["truncated"]) == 3 for row in rows)
    assert workshop.counts(made)["rows"] == 6
    assert workshop.counts(made)["usage"]["calls"] == 6


def test_prompts_without_usable_completions_are_set_aside_and_counted(
    workshop: Workshop, fake: FakeEndpoint, service: Service
) -> None:
    fake.answer = lambda request: {
        "scene 1": fails(400, "too long"),
        "scene 3": says(*["same"] * request.get("n", 1)),
    }.get(last(request), says("a\n[JERRY] cu", "b\nc", "a\nd", finish_reason="length"))
    made = generate_pairs(workshop, given(workshop), SETTINGS, service)
    aside = [row for _, row in read_jsonl(workshop.file(made, SET_ASIDE))]
    assert aside == [
        {"prompt": prompts(6)[1].messages, "reason": "400 too long", "status": 400, "attempts": 1},
        {"prompt": prompts(6)[3].messages, "reason": "1 distinct completions", "status": None, "attempts": 3},
    ]
    counts = workshop.counts(made)
    assert (counts["rows"], counts["failed"], counts["degenerate"]) == (4, 1, 1)
    assert (counts["completions"], counts["truncated"]) == (8, 8)


def with_a_failed_prompt(workshop: Workshop, fake: FakeEndpoint, service: Service) -> tuple[Artifact, Artifact]:
    """Prompts, and their completions but for one that the endpoint refused."""
    plain = fake.answer
    fake.answer = lambda request: fails(400, "no") if last(request) == "scene 1" else plain(request)
    source = given(workshop)
    return source, generate_pairs(workshop, source, SETTINGS, service)


def test_failed_prompts_are_tried_again_by_the_next_run_and_then_it_is_finished(
    workshop: Workshop, fake: FakeEndpoint, service: Service
) -> None:
    plain = fake.answer
    source, first = with_a_failed_prompt(workshop, fake, service)
    again = generate_pairs(workshop, source, SETTINGS, service)
    assert (again.reused, again.digest) == (True, first.digest)
    fake.requests.clear()
    fake.answer = plain
    whole = generate_pairs(workshop, source, SETTINGS, service)
    assert [last(request) for request in fake.requests] == ["scene 1"]
    assert (whole.reused, whole.fingerprint, whole.digest != first.digest) == (False, first.fingerprint, True)
    rows = [row for _, row in read_jsonl(workshop.file(whole, COMPLETIONS))]
    assert [row["prompt"] for row in rows] == [prompt.messages for prompt in prompts(6)]
    assert (workshop.counts(whole)["failed"], workshop.counts(whole)["usage"]["kept"]) == (0, 5)
    assert generate_pairs(workshop, source, SETTINGS, service).reused
    assert len(fake.requests) == 1


def test_failed_prompts_that_cannot_be_tried_again_stop_no_run(
    workshop: Workshop, fake: FakeEndpoint, service: Service
) -> None:
    source, first = with_a_failed_prompt(workshop, fake, service)
    fake.answer = lambda request: fails(401)
    assert generate_pairs(workshop, source, SETTINGS, service).digest == first.digest


def test_a_stage_without_a_single_usable_completion_is_one_line_and_no_artifact(
    workshop: Workshop, fake: FakeEndpoint, service: Service
) -> None:
    fake.answer = lambda request: says("")
    with pytest.raises(FatalError, match=r"none of 6 prompts has usable completions \(the first: 0 distinct"):
        generate_pairs(workshop, given(workshop), SETTINGS, service)
    assert list(workshop.store.list("generate_pairs")) == []


def test_it_is_made_once_and_connects_to_nothing_the_second_time(workshop: Workshop, service: Service) -> None:
    def nobody() -> str:
        raise AssertionError("connected although nothing is missing")

    generate_pairs(workshop, given(workshop), SETTINGS, service)
    others = {"concurrency": 1, "model": "renamed", "max_failed_share": 0.0, "max_cost_usd": 1.0}
    again = SETTINGS.model_copy(update=others)
    assert generate_pairs(workshop, given(workshop), again, replace(service, connect=nobody)).reused


def test_another_adapter_or_setting_makes_another_artifact(workshop: Workshop, service: Service) -> None:
    source = given(workshop)
    keys = {
        generate_pairs(workshop, source, settings, answering).key
        for settings, answering in [
            (SETTINGS, service),
            (SETTINGS, replace(service, identity="adapter-2")),
            (SETTINGS.model_copy(update={"temperature": 1.0}), service),
            (SETTINGS.model_copy(update={"num_completions": 4}), service),
            (SETTINGS.model_copy(update={"line_filter": True}), service),
        ]
    }
    assert len(keys) == 5


def test_prompts_that_are_set_aside_do_not_stay_in_memory(
    workshop: Workshop, fake: FakeEndpoint, service: Service
) -> None:
    def build(folder: Path) -> dict[str, int]:
        texts = (f"{number} " + "x" * 160_000 for number in range(100))
        write_jsonl(folder / "prompts.jsonl", ({"prompt": [{"role": "user", "content": text}]} for text in texts))
        return {}

    def answer(request: Request) -> Answer:
        fake.requests.clear()
        return says("a", "b", "c") if last(request).startswith("0 ") else fails(400, "too long")

    fake.answer = answer
    source = workshop.make(Stage("prompts", 1), {}, {}, build)
    settings = SamplingSettings(max_failed_share=1.0, concurrency=2)
    tracemalloc.start()
    made = generate_pairs(workshop, source, settings, service)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12_000_000  # the prompts have sixteen million bytes
    assert workshop.counts(made)["failed"] == 99


RUN = """
    import sys
    from pathlib import Path
    from nothing_gpt.artifacts import Artifact, Workshop
    from nothing_gpt.config import SamplingSettings
    from nothing_gpt.dpo.generate_pairs import generate_pairs
    from nothing_gpt.endpoint import Service
    from nothing_gpt.store import open_store
    store, url, fingerprint, digest = sys.argv[1:]
    workshop = Workshop(open_store(store), Path(store) / ".work")
    settings = SamplingSettings(max_failed_share=0.5, concurrency=12)
    made = generate_pairs(workshop, Artifact(store, "prompts", fingerprint, digest), settings,
                          Service(lambda: url, "fake", "adapter-1"))
    print(made.digest)
"""


def test_a_killed_run_goes_on_to_the_same_bytes_and_repeats_nothing_that_was_written(
    workshop: Workshop, fake: FakeEndpoint, service: Service, child: Start, tmp_path: Path
) -> None:
    plain = fake.answer
    fake.answer = lambda request: replace(plain(request), seconds=0.1)
    source = given(workshop, 80)
    arguments = workshop.store.uri, fake.url, source.fingerprint, source.digest
    killed = child(RUN, *arguments)
    while not list(workshop.store.list("journal")) and killed.poll() is None:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = {
        json.loads(line)["key"].partition("/")[0]
        for segment in workshop.store.list("journal")
        for line in (workshop.store.read(segment) or b"").splitlines()
    }
    whole = child(RUN, *arguments)
    out, err = whole.communicate()
    assert whole.returncode == 0, err
    asked = Counter(Prompt.of(request["messages"]).id for request in fake.requests)
    assert set(asked) == {prompt.id for prompt in prompts(80)}
    assert {asked[prompt] for prompt in kept} == {1}
    assert max(asked.values()) <= 2
    fake.answer = plain
    undisturbed = Workshop(open_store(str(tmp_path / "other")), tmp_path / "other-work")
    assert generate_pairs(undisturbed, given(undisturbed, 80), SETTINGS, service).digest == out.strip()


def test_the_guides_command_knows_an_adapter_at_every_replica(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving_adapters() as one, serving_adapters() as other:
        environment = Environment(serve_url=f"{one.url},{other.url}")
        one.serve("seinfeld", save_adapter(tmp_path / "a", 0.5))
        other.serve("seinfeld", save_adapter(tmp_path / "copy of a", 0.5))
        assert _identity(environment, "seinfeld") == adapter_digest(tmp_path / "a")
        other.serve("seinfeld", save_adapter(tmp_path / "b", 0.6))
        with pytest.raises(FatalError, match=f"{one.url} and {other.url} serve different adapters as seinfeld"):
            _identity(environment, "seinfeld")
