"""Rows of one stage come from one model: what becomes of a batch's answers by another."""

from collections import Counter

import pytest

from nothing_gpt.errors import FatalError
from tests.batches.stand import Stand, texts
from tests.fake_batches import FakeBatches
from tests.fake_endpoint import last, says


@pytest.mark.parametrize("row", ["t0", "t4", "t9"])
def test_a_reply_by_another_model_than_most_is_asked_again_wherever_it_stands(
    stand: Stand, provider: FakeBatches, row: str
) -> None:
    provider.fate = lambda request, batch: says(
        "fine", model="other" if (last(request), batch) == (row, 0) else "fake-2"
    )
    meter = stand.run(texts(10))
    assert {reply.model for reply in stand.replies.values()} == {"fake-2"}
    assert sorted(stand.replies) == texts(10)
    assert provider.submitted == Counter([*texts(10), row])
    assert (meter.calls, meter.retries) == (11, 1), "whoever answered, it is paid for"


def test_a_row_that_only_another_model_answers_is_set_aside(stand: Stand, provider: FakeBatches) -> None:
    provider.fate = lambda request, batch: says("fine", model="other" if last(request) == "t1" else "fake")
    stand.run(texts(3))
    assert sorted(stand.replies) == ["t0", "t2"]
    assert "fake was answered by other (3 times)" in str(stand.aside["t1"])


def test_many_replies_by_another_model_are_fatal_once_all_others_are_collected(
    stand: Stand, provider: FakeBatches
) -> None:
    changed = texts(9)
    provider.fate = lambda request, batch: says("fine", model="other" if last(request) in changed else "fake-2")
    with pytest.raises(FatalError, match=r"fake was answered by fake-2, and now by other; .* set judge\.model"):
        stand.run(texts(20))
    assert sorted(stand.replies) == sorted({*texts(20)} - {*changed})
    changed.clear()
    stand.run(texts(20), kept=list(stand.replies.values()))
    assert sorted(stand.replies) == sorted(texts(20))


def test_replies_by_another_model_than_the_rows_kept_from_before_are_fatal(stand: Stand, provider: FakeBatches) -> None:
    stand.run(["t0"])
    provider.fate = lambda request, batch: says("fine", model="other")
    with pytest.raises(FatalError, match="was answered by fake, and now by other"):
        stand.run(texts(20), kept=list(stand.replies.values()))
