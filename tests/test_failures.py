"""Failed rows: one is always borne, of many a share, and past it the stage stops with one line."""

import pytest

from nothing_gpt.errors import BadRowError, FatalError
from nothing_gpt.failures import Failure, Failures


def test_a_failed_row_keeps_its_reason_status_and_attempts() -> None:
    failures = Failures("judge", "judge.max_failed_share", 0.5, 4)
    failures.add("a", BadRowError("too long", status=400, attempts=2))
    assert failures.get("a") == Failure("too long", 400, 2)
    assert (failures.get("b"), len(failures)) == (None, 1)


@pytest.mark.parametrize(
    ("share", "total", "allowed"),
    [(0, 1000, 1), (0.01, 50, 1), (0.01, 299, 2), (0.29, 100, 29), (1, 3, 3), (0.5, 0, 1)],
)
def test_so_many_rows_may_fail(share: float, total: int, allowed: int) -> None:
    failures = Failures("generate", "sampling.max_failed_share", share, total)
    for row in range(allowed):
        failures.add(str(row), BadRowError("no"))
    with pytest.raises(FatalError):
        failures.add("one more", BadRowError("no"))


def test_the_line_says_how_many_why_and_what_to_do() -> None:
    failures = Failures("generate", "sampling.max_failed_share", 0.1, 10)
    failures.add("a", BadRowError("400 too long"))
    with pytest.raises(FatalError) as error:
        failures.add("b", BadRowError("500 boom"))
    assert str(error.value) == (
        "generate: 2 of 10 rows failed (sampling.max_failed_share is 0.1); the first: 400 too long; what was answered "
        "is kept; mend the cause or raise the share, and run again"
    )


def test_a_row_that_fails_twice_is_one_row() -> None:
    failures = Failures("generate", "sampling.max_failed_share", 0, 10)
    failures.add("a", BadRowError("no"))
    failures.add("a", BadRowError("no"))
    assert len(failures) == 1
