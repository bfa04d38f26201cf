"""The tables of docs/scaling.md: they are what is computed, and GPUs are counted as training chooses them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import capacity
from benchmarks.footprint import stored

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "scaling.md"


@pytest.mark.parametrize("table", [capacity.data_table, capacity.limits_table, capacity.model_table])
def test_the_documentation_shows_what_is_computed(table: Callable[[], str]) -> None:
    assert table() in DOCUMENTATION.read_text()


@pytest.mark.parametrize(
    ("parameters", "quantization", "memory", "wanted"),
    [
        (3.2e9, "none", 24e9, (1, False)),
        (8e9, "none", 24e9, (1, False)),  # 16 GB: two thirds exactly
        (8.03e9, "none", 24e9, (2, True)),
        (70e9, "nf4", 24e9, (4, True)),
        (70e9, "nf4", 80e9, (1, False)),
        (400e9, "none", 24e9, None),
    ],
)
def test_a_base_model_gets_the_fewest_gpus_that_hold_it(
    parameters: float, quantization: str, memory: float, wanted: object
) -> None:
    assert capacity.group(parameters, quantization, memory) == wanted


def test_the_shapes_have_as_many_parameters_as_they_are_said_to_have() -> None:
    for shape, parameters in capacity.SERVED.values():
        embeddings = shape.vocab_size * shape.hidden_size
        assert any(
            shape.linear_parameters + count * embeddings == pytest.approx(parameters, rel=0.01) for count in (1, 2)
        )


def test_what_is_stored_beside_the_texts_is_measured() -> None:
    found = stored(40)
    assert 1000 < found["bytes_a_prompt"] < 2000
    assert 150 < found["bytes_a_pair"] < 300
