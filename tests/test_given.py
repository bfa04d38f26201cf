"""What a person gives to a run, on a machine that has it and on one that has not."""

from pathlib import Path

import pytest

from nothing_gpt.adapters import CONFIG
from nothing_gpt.artifacts import Workshop
from nothing_gpt.errors import FatalError
from nothing_gpt.given import ADAPTER, adapter_files, give, is_here, prompts_file
from nothing_gpt.store import Store, open_bucket
from tests.fake_gcs import BUCKET, FakeGCS
from tests.fake_vllm import save_adapter

PROMPT = '{"prompt": [{"role": "user", "content": "[ANNA] Well?"}]}\n'


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "mine.jsonl"
    file.write_text(PROMPT)
    return file


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "mine", 0.25)


def bucket(uri: str) -> Store:
    return open_bucket(uri, None, None)


@pytest.mark.every_store
def test_what_was_pushed_is_had_by_its_key_and_is_the_same(workshop: Workshop, prompts: Path, adapter: Path) -> None:
    key = give(workshop, prompts).key
    assert prompts_file(workshop, key, bucket).read_text() == PROMPT
    there = give(workshop, adapter)
    files = adapter_files(workshop, there.key, bucket)
    assert files.keys() == adapter_files(workshop, str(adapter), bucket).keys()
    assert workshop.adopt(ADAPTER, files).key == there.key
    again = workshop.adopt(ADAPTER, adapter_files(workshop, str(adapter), bucket))
    assert (again.key, again.reused) == (there.key, True)


@pytest.mark.gcs
def test_a_folder_of_a_bucket_serves_too_and_gets_nothing_of_ours(
    gcs: FakeGCS, workshop: Workshop, prompts: Path, adapter: Path
) -> None:
    theirs = f"gs://{BUCKET}/theirs"
    for file in (prompts, *adapter.iterdir()):
        bucket(theirs).upload(file, file.name)
    before = set(gcs.objects)
    assert prompts_file(workshop, f"{theirs}/{prompts.name}", bucket).read_text() == PROMPT
    assert workshop.adopt(ADAPTER, adapter_files(workshop, f"{theirs}/", bucket)).key == give(workshop, adapter).key
    with pytest.raises(FatalError, match=f"{theirs}: has no other.jsonl; correct the address"):
        prompts_file(workshop, f"{theirs}/other.jsonl", bucket)
    assert set(gcs.objects) == before


def test_what_is_not_in_the_store_is_said_with_the_command_that_puts_it_there(
    workshop: Workshop, prompts: Path
) -> None:
    with pytest.raises(FatalError, match="sft/0123456789abcdef: not there, or damaged; `nothing-gpt push` puts it"):
        adapter_files(workshop, "sft/0123456789abcdef", bucket)
    with pytest.raises(FatalError, match=f"has no {CONFIG} and adapter_model.safetensors; correct the address"):
        adapter_files(workshop, give(workshop, prompts).key, bucket)


@pytest.mark.parametrize("address", ["gs://bucket", "gs://bucket/", "gs://bucket/folder/", "gs://"])
def test_an_address_of_prompts_that_names_no_file_is_said_to_be_none(workshop: Workshop, address: str) -> None:
    with pytest.raises(FatalError, match=f"{address}: names no file; give gs://BUCKET/FOLDER/FILE"):
        prompts_file(workshop, address, bucket)


def test_only_what_a_run_would_take_is_kept(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="no file of prompts, no adapter's folder and no artifact's key"):
        give(workshop, tmp_path / "nothing")
    with pytest.raises(FatalError, match=CONFIG):
        give(workshop, tmp_path)
    (tmp_path / "no.jsonl").write_text("{}")
    with pytest.raises(FatalError, match='line 1: no "prompt"'):
        give(workshop, tmp_path / "no.jsonl")
    assert list(workshop.store.list()) == ["FORMAT"]


@pytest.mark.parametrize(
    ("address", "here"),
    [("a.jsonl", True), ("sft/mine", True), ("./sft/0123456789abcdef", True), ("gs://bucket/a", False),
     ("sft/0123456789abcdef", False)],
)  # fmt: skip
def test_a_path_is_told_from_a_key(address: str, here: bool) -> None:
    assert is_here(address) is here
