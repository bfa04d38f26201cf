"""The rows: ids that outlive order and files, and one clear line for whatever a file may hold instead."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nothing_gpt.errors import FatalError
from nothing_gpt.records import (
    Prompt,
    digest,
    file_digest,
    read_jsonl,
    read_prompts,
    read_sets,
    share,
    write_jsonl,
)

GOOD = {"prompt": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def row(*messages: object) -> str:
    return json.dumps({"prompt": list(messages)})


def refused(file: Path, data: bytes | str) -> str:
    """The one line that says why a prompts file with these contents is refused."""
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(FatalError) as error:
        read_prompts(file)
    assert str(error.value).startswith(f"{file}")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_prompts_are_read_in_order(file: Path) -> None:
    file.write_text("\n".join(row({"role": "user", "content": text}) for text in "cab"))
    prompts, duplicates = read_prompts(file)
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["c", "a", "b"]
    assert duplicates == 0


def test_a_missing_prompts_file_is_fatal(file: Path) -> None:
    with pytest.raises(FatalError, match=r"prompts\.jsonl: cannot read it \(No such file or directory\)"):
        read_prompts(file)


@pytest.mark.parametrize("data", ["", "\n \n"])
def test_an_empty_prompts_file_is_fatal(file: Path, data: str) -> None:
    assert "holds no prompts" in refused(file, data)


@pytest.mark.parametrize("line", [b"{", b"hello", b'{"prompt": }', b"\xff\xfe\xfa", b'"\xc3"', b"[" * 100_000])
def test_a_line_that_is_not_json_is_fatal_with_its_number(file: Path, line: bytes) -> None:
    good = json.dumps(GOOD).encode()
    assert "line 4: not JSON" in refused(file, b"\n".join([good, b"", good, line, good]))


@pytest.mark.parametrize(
    "value", ["1", "null", "[]", "{}", '{"prompt": "hello"}', '{"prompt": []}', '{"prompt": null}']
)
def test_a_row_without_a_prompt_is_fatal_with_its_number(file: Path, value: str) -> None:
    assert 'line 2: no "prompt"' in refused(file, json.dumps(GOOD) + "\n" + value)


@pytest.mark.parametrize(
    "message", [{"role": "narrator", "content": "x"}, {"content": "x"}, "x", None, {"role": ["user"], "content": "x"}]
)
def test_an_unknown_role_is_fatal_and_the_known_ones_are_named(file: Path, message: object) -> None:
    assert "system, user, assistant" in refused(file, row(message))


@pytest.mark.parametrize("content", ["", " \n", None, 3, ["x"]])
def test_an_empty_message_is_fatal(file: Path, content: object) -> None:
    assert "an empty user message" in refused(file, row({"role": "user", "content": content}))


def test_half_a_character_is_fatal(file: Path) -> None:
    assert "line 1: half a character" in refused(file, row({"role": "user", "content": "x \ud83d"}))


def test_duplicates_are_kept_once_and_counted(file: Path) -> None:
    a, b = row({"role": "user", "content": "a"}), row({"role": "user", "content": "b"})
    reordered = '{"prompt": [{"content": "a", "role": "user"}], "note": "else"}'
    file.write_text("\n".join([a, b, a, reordered]))
    prompts, duplicates = read_prompts(file)
    assert (len(prompts), duplicates) == (2, 2)


@pytest.mark.parametrize("text", ["a\u2028b", "[GEORGE]\nno", "\U0001f600", "\u202eab"])
def test_a_prompt_may_hold_any_character(file: Path, text: str) -> None:
    write_jsonl(file, [{"prompt": [{"role": "user", "content": text}]}])
    assert read_prompts(file)[0][0].messages[0]["content"] == text


def test_a_file_with_a_byte_order_mark_or_windows_line_ends_is_read(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode() + b"\r\n")
    assert read_prompts(file)[1] == 1


def test_prompts_of_several_files_are_one_sequence(tmp_path: Path) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for file, texts in zip(files, ("ab", "bcd"), strict=True):
        write_jsonl(file, ({"prompt": [{"role": "user", "content": text}]} for text in texts))
    prompts, duplicates = read_prompts(*files)
    assert "".join(prompt.messages[0]["content"] for prompt in prompts) == "abcd"
    assert (len(prompts), duplicates) == (4, 1)
    first, *others = prompts
    assert (prompts[0], prompts[-1], prompts[1:]) == (first, others[-1], others)
    assert list(prompts.ids()) == [prompt.id for prompt in prompts] == [digest(prompt.messages) for prompt in prompts]


def test_one_empty_file_of_several_is_named(tmp_path: Path) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    write_jsonl(files[0], [GOOD])
    files[1].touch()
    with pytest.raises(FatalError, match=r"two.jsonl: holds no prompts"):
        read_prompts(*files)


def test_prompts_stay_in_their_file_until_they_are_looked_at(file: Path) -> None:
    write_jsonl(file, ({"prompt": [{"role": "user", "content": f"{n} " + "x" * 2000}]} for n in range(5000)))
    tracemalloc.start()
    prompts, _ = read_prompts(file)
    assert sum(1 for _ in prompts) == 5000
    assert tracemalloc.get_traced_memory()[1] < 3_000_000  # of ten million bytes
    tracemalloc.stop()


def test_sets_are_read_when_they_are_looked_at(file: Path) -> None:
    rows = [GOOD | {"completions": [str(n), "b"], "truncated": [True, False]} for n in range(3)]
    write_jsonl(file, rows)
    sets = read_sets(file)
    assert [item.completions[0] for item in sets] == ["0", "1", "2"]
    assert (sets[0].prompt, sets[0].truncated) == (Prompt.of(sets[0].prompt.messages), [True, False])


def test_a_text_that_is_there_twice_is_one_completion_and_whole_if_it_was_whole_once(file: Path) -> None:
    texts, cut = ["a", "b", "a", "c", "c"], [True, False, False, True, True]
    write_jsonl(file, [GOOD | {"completions": texts, "truncated": cut}])
    assert (read_sets(file)[0].completions, read_sets(file)[0].truncated) == (["a", "b", "c"], [False, False, True])


@pytest.mark.parametrize("truncated", [True, "no", [False], [False] * 3, [0, 1], ["a", "b"], {}])
def test_a_row_that_says_in_another_way_what_was_cut_is_fatal_with_its_number(file: Path, truncated: object) -> None:
    write_jsonl(file, [GOOD | {"completions": ["a", "b"], "truncated": truncated}])
    with pytest.raises(FatalError, match='line 1: "truncated" must be a list with true or false for each completion'):
        read_sets(file)


def test_half_a_character_in_a_completion_is_fatal_with_its_number(file: Path) -> None:
    file.write_text(json.dumps(GOOD | {"completions": ["a \ud83d", "b"]}))
    with pytest.raises(FatalError, match=r"line 1: half a character .* in a completion"):
        read_sets(file)


@pytest.mark.parametrize("completions", [None, "text", [1], [None]])
def test_a_row_without_completions_is_fatal_with_its_number(file: Path, completions: object) -> None:
    file.write_text(json.dumps(GOOD | {"completions": completions}))
    with pytest.raises(FatalError, match='line 1: no "completions"'):
        read_sets(file)


def test_the_guides_completions_file_without_truncated_is_read(file: Path) -> None:
    file.write_text(json.dumps(GOOD | {"completions": ["a", "b"]}))
    assert read_sets(file)[0].truncated == [False, False]


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="nothing: cannot read it"):
        file_digest(tmp_path / "nothing")


def test_shares_are_even_and_independent_between_purposes() -> None:
    ids = [str(number) for number in range(4000)]
    test = [share(identity, 42, "test") < 0.2 for identity in ids]
    val = [share(identity, 42, "val") < 0.2 for identity in ids]
    assert 0.18 < sum(test) / 4000 < 0.22
    assert 0.03 < sum(a and b for a, b in zip(test, val, strict=True)) / 4000 < 0.05
    assert test != [share(identity, 43, "test") < 0.2 for identity in ids]


@settings(max_examples=30)
@given(
    st.lists(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.text(st.characters(exclude_categories=["Cs"])) | st.integers(),
        )
    )
)
def test_rows_that_are_written_are_read_back_line_by_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert write_jsonl(path, rows) == len(rows)
    assert list(read_jsonl(path)) == list(enumerate(rows, 1))
