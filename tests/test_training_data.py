"""Pairs that are too long: refused, dropped or cut, and always counted."""

from collections import Counter

import pytest
from jinja2 import TemplateError

from nothing_gpt import training_data
from nothing_gpt.errors import FatalError
from nothing_gpt.training_data import Tokens, check_split, check_tokens, fit, tokenize

SHORT = Tokens(2, [1, 2, 3], [1, 2, 4])
LONG = Tokens(2, [1, 2, 3, 4, 5, 6], [1, 2, 9])
LONG_PROMPT = Tokens(5, [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7])
ALIKE_WHEN_CUT = Tokens(2, [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7])
ALL = [SHORT, LONG, LONG_PROMPT, ALIKE_WHEN_CUT]
ROWS = [{"name": name} for name in ("short", "long", "long prompt", "alike when cut")]


def kept(long_pairs: str, max_length: int = 5) -> tuple[list[str], Counter[str]]:
    counts: Counter[str] = Counter()
    rows = fit(ROWS, ALL, max_length, long_pairs, counts, "train.jsonl")
    counts.pop("longest")
    return [row["name"] for row in rows], +counts


def test_where_none_is_too_long_nothing_happens() -> None:
    for long_pairs in ("refuse", "drop", "truncate"):
        assert kept(long_pairs, max_length=6) == ([row["name"] for row in ROWS], Counter())


def test_they_are_refused_with_how_many_and_how_long() -> None:
    with pytest.raises(FatalError) as error:
        kept("refuse")
    assert str(error.value).startswith("train.jsonl: 3 of 4 pairs are longer than training.max_length = 5 tokens (the ")
    assert "the longest has 6" in str(error.value)


def test_they_are_dropped_and_counted() -> None:
    assert kept("drop") == (["short"], Counter(dropped=3))


def test_they_are_cut_and_counted_unless_nothing_would_tell_their_sides_apart() -> None:
    assert kept("truncate") == (["short", "long"], Counter(dropped=2, truncated=1))


def test_where_none_is_left_it_stops() -> None:
    with pytest.raises(FatalError, match="every pair is longer than"):
        kept("drop", max_length=2)


@pytest.mark.parametrize(("long_pairs", "longest"), [("drop", 3), ("truncate", 5)])
def test_the_longest_sequence_is_one_that_is_trained_on(long_pairs: str, longest: int) -> None:
    counts: Counter[str] = Counter()
    fit(ROWS, ALL, 5, long_pairs, counts, "train.jsonl")
    assert counts["longest"] == longest
    fit(ROWS[:1], ALL[:1], 5, long_pairs, counts, "val.jsonl")
    assert counts["longest"] == longest, "of all files"


def test_ids_that_the_model_does_not_know_are_refused() -> None:
    check_tokens(ALL, 10, "train.jsonl")
    with pytest.raises(FatalError, match=r"^train.jsonl: the tokenizer makes token id 9, and the base model knows 9; "):
        check_tokens(ALL, 9, "train.jsonl")


def test_sides_that_are_equal_for_the_model_are_refused() -> None:
    with pytest.raises(FatalError, match=r"^val.jsonl: in 1 of 2 pairs \(the first is pair 2\) both sides are equal"):
        check_tokens([SHORT, Tokens(2, [1, 2, 3], [1, 2, 3])], 10, "val.jsonl")


def test_prompts_on_both_sides_of_the_split_are_counted_and_refused_where_all_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, val = ([{"prompt": prompt} for prompt in prompts] for prompts in ("abc", "bde"))
    check_split(train, val[1:])
    assert capsys.readouterr().err == ""
    check_split(train, val)
    said = "train: 1 of 3 pairs in val.jsonl have a prompt of train.jsonl; split by prompt"
    assert capsys.readouterr().err.splitlines() == [said]
    with pytest.raises(FatalError, match=r"^val.jsonl: every prompt is in train.jsonl too"):
        check_split(train, val[:1])


class Tokenizer:
    """A tokenizer whose template takes no messages."""

    name_or_path = "a/base"

    def __init__(self, chat_template: str | None, error: Exception):
        self.chat_template, self.error = chat_template, error

    def apply_chat_template(self, *_: object, **__: object) -> None:
        raise self.error


PAIR = {side: [{"role": "user", "content": "x"}] for side in ("prompt", "chosen", "rejected")}


def test_a_base_without_a_chat_template_is_refused_in_one_line() -> None:
    with pytest.raises(FatalError, match=r"^train: the base model a/base has no chat template; .*$"):
        tokenize(Tokenizer(None, ValueError("tokenizer.chat_template is not set")), [PAIR])


def test_a_template_that_refuses_the_roles_is_told_in_one_line() -> None:
    with pytest.raises(
        FatalError, match=r"^train: the chat template .* a/base refuses .* \(roles must alternate\); .*$"
    ):
        tokenize(Tokenizer("{{ messages }}", TemplateError("roles must\nalternate")), [PAIR])


class Letters:
    """A tokenizer for which each letter is a token."""

    name_or_path, chat_template = "a/base", "yes"

    def apply_chat_template(self, conversations: list[list[dict[str, str]]], **_: object) -> list[str]:
        return ["".join(message["content"] for message in messages) for messages in conversations]

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*map(ord, text)] for text in texts]}


def test_more_pairs_than_are_tokenised_at_once_come_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "AT_ONCE", 2)
    sides = [(prompt, f"{prompt}!", f"{prompt}??") for prompt in ("a", "bb", "ccc")]
    names = "prompt", "chosen", "rejected"
    rows = [
        {name: [{"role": "user", "content": text}] for name, text in zip(names, side, strict=True)} for side in sides
    ]
    found = [(pair.prompt, "".join(map(chr, pair.rejected))) for pair in tokenize(Letters(), rows)]
    assert found == [(len(prompt), prompt + rejected) for prompt, _, rejected in sides]
