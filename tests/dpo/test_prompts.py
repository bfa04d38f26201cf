"""Stage 0: prompts come in once, each on a side of its own, and a bad file stops the run before it starts."""

import json
from pathlib import Path

import pytest

from nothing_gpt.artifacts import Artifact, Workshop
from nothing_gpt.config import PromptsSettings
from nothing_gpt.dpo.prompts import PROMPTS, TEST, prompts
from nothing_gpt.errors import FatalError
from nothing_gpt.records import read_prompts, write_jsonl
from tests import samples

HALF = PromptsSettings(test_share=0.5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def write(file: Path, texts: list[str]) -> Path:
    write_jsonl(file, ({"prompt": samples.prompt(text).messages} for text in texts))
    return file


def side(workshop: Workshop, artifact: Artifact, name: str) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in read_prompts(workshop.file(artifact, name))[0]]


def test_every_prompt_is_on_one_side(workshop: Workshop, file: Path) -> None:
    texts = [str(number) for number in range(100)]
    artifact = prompts(workshop, [write(file, texts)], HALF)
    ours, held_out = side(workshop, artifact, PROMPTS), side(workshop, artifact, TEST)
    assert sorted(ours + held_out, key=int) == texts
    assert 30 < len(held_out) < 70
    assert workshop.counts(artifact) == {"rows": len(ours), "test_rows": len(held_out), "duplicates": 0}


def test_a_prompts_side_does_not_depend_on_the_other_prompts(workshop: Workshop, file: Path) -> None:
    texts = [str(number) for number in range(100)]
    all_of_them = set(side(workshop, prompts(workshop, [write(file, texts)], HALF), TEST))
    some = side(workshop, prompts(workshop, [write(file, texts[90:20:-1])], HALF), TEST)
    assert set(some) == all_of_them & set(texts[21:91])


def test_duplicates_are_kept_once_and_counted(workshop: Workshop, file: Path) -> None:
    texts = [str(number) for number in range(40)]
    artifact = prompts(workshop, [write(file, texts + texts[:7])], HALF)
    counts = workshop.counts(artifact)
    assert (counts["rows"] + counts["test_rows"], counts["duplicates"]) == (40, 7)


def test_limits_take_the_first_of_each_side(workshop: Workshop, file: Path) -> None:
    write(file, [str(number) for number in range(100)])
    whole = prompts(workshop, [file], HALF)
    some = prompts(workshop, [file], PromptsSettings(test_share=0.5, limit=5, test_limit=3))
    assert side(workshop, some, PROMPTS) == side(workshop, whole, PROMPTS)[:5]
    assert side(workshop, some, TEST) == side(workshop, whole, TEST)[:3]


def test_several_files_are_read_in_their_order_each_prompt_once(workshop: Workshop, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [str(number) for number in range(60)])
    two = write(tmp_path / "two.jsonl", [str(number) for number in range(99, 40, -1)])
    artifact = prompts(workshop, [one, two], HALF)
    together = [*range(60), *range(99, 59, -1)]
    for name in (PROMPTS, TEST):
        numbers = list(map(int, side(workshop, artifact, name)))
        assert numbers == [number for number in together if number in numbers]
    assert workshop.counts(artifact)["duplicates"] == 19
    assert sum(workshop.counts(artifact)[side] for side in ("rows", "test_rows")) == 100


def test_a_sample_is_drawn_by_the_seed_keeps_the_order_and_is_part_of_every_larger_one(
    workshop: Workshop, file: Path
) -> None:
    write(file, [str(number) for number in range(200)])

    def drawn(sample: int, seed: int = 42) -> list[int]:
        artifact = prompts(workshop, [file], PromptsSettings(test_share=0.3, sample=sample, seed=seed))
        return sorted(int(text) for name in (PROMPTS, TEST) for text in side(workshop, artifact, name))

    assert [len(drawn(count)) for count in (20, 60, 200, 1000)] == [20, 60, 200, 200]
    assert set(drawn(20)) < set(drawn(60))
    assert drawn(60) != drawn(60, seed=1)
    ordered = list(map(int, side(workshop, prompts(workshop, [file], PromptsSettings(sample=60)), PROMPTS)))
    assert ordered == sorted(ordered)


def test_a_prompts_turn_in_a_sample_does_not_depend_on_the_other_prompts(workshop: Workshop, tmp_path: Path) -> None:
    settings = PromptsSettings(test_share=0.3, sample=50)
    texts = [str(number) for number in range(100)]
    few = prompts(workshop, [write(tmp_path / "few.jsonl", texts)], settings)
    many = prompts(workshop, [write(tmp_path / "many.jsonl", [*texts[::-1], *map(str, range(100, 200))])], settings)
    drawn = {text for name in (PROMPTS, TEST) for text in side(workshop, many, name)}
    assert drawn & set(texts) <= {text for name in (PROMPTS, TEST) for text in side(workshop, few, name)}


def test_the_files_place_is_no_setting_and_its_bytes_are(workshop: Workshop, file: Path, tmp_path: Path) -> None:
    first = prompts(workshop, [write(file, [str(number) for number in range(50)])], HALF)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    assert prompts(workshop, [copy], HALF).reused
    with copy.open("a") as more:
        more.write(json.dumps({"prompt": samples.prompt("one more").messages}) + "\n")
    assert prompts(workshop, [copy], HALF).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such prompts file"),
        ("", "holds no prompts"),
        ("{", "line 1: not JSON"),
        ("{}", 'line 1: no "prompt"'),
        ('{"prompt": [{"role": "user", "content": "x"}]}', "1 prompts leave none for"),
    ],
)
def test_a_bad_file_is_one_line_and_leaves_no_artifact(
    workshop: Workshop, file: Path, text: str | None, said: str
) -> None:
    if text is not None:
        file.write_text(text)
    with pytest.raises(FatalError, match=said) as error:
        prompts(workshop, [file], HALF)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(workshop.store.list("prompts")) == []
