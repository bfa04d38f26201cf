"""The guide's two commands, with the guide's variables and files and nothing else: `generate_pairs`, then `judge`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.fake_endpoint import Answer, FakeEndpoint, Request, fails, says


def run(module: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module],
        env=os.environ | environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def longest_is_best(request: Request) -> Answer:
    texts = [completion["text"] for completion in json.loads(request["messages"][1]["content"])["completions"]]
    best, worst = (texts.index(pick(texts, key=len)) + 1 for pick in (max, min))
    return says(json.dumps({"reason": "longer", "best": best, "worst": worst, "tie": False}), model=request["model"])


def test_prompts_become_completions_and_these_become_pairs(fake: FakeEndpoint, tmp_path: Path) -> None:
    prompts = [[{"role": "user", "content": f"[ANNA] Scene {number}."}] for number in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    fake.answer = lambda request: says(
        *["[BEN] " + "no " * length for length in range(1, request["n"] + 1)], model=request["model"]
    )

    generated = run("nothing_gpt.dpo.generate_pairs", SERVE_URL=fake.url, DPO_DATA_PATH=str(tmp_path))
    assert generated.returncode == 0, generated.stderr
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    assert rows[0]["completions"] == ["[BEN] no", "[BEN] no no", "[BEN] no no no"]
    assert {request["model"] for request in fake.requests} == {"seinfeld"}

    fake.requests.clear()
    fake.answer = longest_is_best
    judged = run("nothing_gpt.dpo.judge", OPENAI_BASE_URL=fake.url, OPENAI_API_KEY="k", DPO_DATA_PATH=str(tmp_path))
    assert judged.returncode == 0, judged.stderr
    pairs = [json.loads(line) for name in ("train", "val") for line in (tmp_path / f"{name}.jsonl").open()]
    assert len(pairs) == 40
    assert pairs[0]["chosen"] == [{"role": "assistant", "content": "[BEN] no no no"}]
    assert pairs[0]["rejected"] == [{"role": "assistant", "content": "[BEN] no"}]
    assert len(fake.requests) == 80

    again = run("nothing_gpt.dpo.judge", OPENAI_BASE_URL=fake.url, OPENAI_API_KEY="k", DPO_DATA_PATH=str(tmp_path))
    assert (again.returncode, len(fake.requests)) == (0, 80)


@pytest.mark.parametrize("key", ["sk-secret\n", "sk-s\xe9cret"])
def test_a_key_of_whatever_form_is_no_traceback_and_not_shown(fake: FakeEndpoint, tmp_path: Path, key: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "a"}]}) + "\n")
    fake.answer = lambda request: fails(401, f"no such key: {key}")
    ended = run("nothing_gpt.dpo.generate_pairs", SERVE_URL=fake.url, SERVE_API_KEY=key, DPO_DATA_PATH=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "cret" not in ended.stderr


def test_completions_that_cannot_be_written_are_one_clear_line_and_not_paid_again(
    fake: FakeEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "a"}]}) + "\n")
    fake.answer = lambda request: says("a", "b", "c", model=request["model"])
    completions = tmp_path / "completions.jsonl"
    completions.symlink_to("/dev/full")
    full = run("nothing_gpt.dpo.generate_pairs", SERVE_URL=fake.url, DPO_DATA_PATH=str(tmp_path))
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith(f"error: {completions}: cannot be used (No space left on device)")
    completions.unlink()
    again = run("nothing_gpt.dpo.generate_pairs", SERVE_URL=fake.url, DPO_DATA_PATH=str(tmp_path))
    assert (again.returncode, len(fake.requests)) == (0, 1), again.stderr


def test_a_missing_prompts_file_is_one_clear_line(fake: FakeEndpoint, tmp_path: Path) -> None:
    ended = run("nothing_gpt.dpo.generate_pairs", SERVE_URL=fake.url, DPO_DATA_PATH=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [f"error: {tmp_path / 'prompts.jsonl'}: no such file; check the path"]
