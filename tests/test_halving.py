"""Which points go on after the first budget."""

import pytest

from nothing_gpt.halving import better_half


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ({"a": 0.5, "b": 0.9, "c": 0.6, "d": 0.8}, ["b", "d"]),
        ({"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.9, "e": 0.2}, ["b", "c", "d"]),
        ({"a": 0.7, "b": 0.7}, ["a", "b"]),
        ({"a": 0.7}, ["a"]),
        ({}, []),
    ],
)
def test_those_that_are_not_below_the_median_go_on(scores: dict[str, float], wanted: list[str]) -> None:
    assert better_half(scores) == wanted
