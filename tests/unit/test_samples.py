"""How many samples a batch has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.samples import batch_samples


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(3, 2), 3),
        ((torch.zeros(4, 2), torch.zeros(4)), 4),
        ({"ids": torch.zeros(5, 7, dtype=torch.long), "names": ["a", "b"]}, 5),
        ([{"x": torch.zeros(2)}], 2),
    ],
)
def test_the_first_tensors_first_dimension_counts(batch: Any, samples: int) -> None:
    assert batch_samples(batch) == samples


def test_a_batch_without_a_tensor_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"a batch of type object has.*weighting='uniform'"):
        batch_samples(object())
