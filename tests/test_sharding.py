"""By how large a model is, and how much memory a GPU has, it is held whole or sharded."""

from typing import Literal

import pytest

from nothing_gpt.config import TrainingSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.sharding import is_sharded

L4 = 24 * 10**9


@pytest.mark.parametrize(
    ("billions", "quantization", "gpus", "sharded"),
    [
        (3, "none", 2, False),  # 6 GB in bfloat16
        (8, "none", 2, True),  # 16 GB and a little more than two thirds of 24
        (8.1, "none", 1, False),  # alone there is nobody to share with
        (8, "nf4", 2, False),
        (70, "nf4", 4, True),  # 36 GB
    ],
)
def test_a_model_is_sharded_where_a_gpu_has_no_room_for_it(
    billions: float, quantization: Literal["none", "nf4"], gpus: int, sharded: bool
) -> None:
    settings = TrainingSettings(quantization=quantization)
    assert is_sharded(round(billions * 1e9) + 1, settings, L4, gpus) is sharded


def test_one_that_does_not_fit_even_so_is_refused_with_what_to_change() -> None:
    said = r"takes 140 GB, and 4 GPUs of 24 GB give it 64; set training.quantization=nf4, or more"
    with pytest.raises(FatalError, match=said):
        is_sharded(70 * 10**9, TrainingSettings(), L4, 4)
