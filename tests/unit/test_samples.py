"""How many samples a batch has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.samples import batch_samples, samples_or_one


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
    assert batch_samples(batch) == samples_or_one(batch) == samples


def test_a_batch_without_a_tensor_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"a batch of type object has.*weighting='uniform'"):
        batch_samples(object())


def test_where_nothing_rests_on_it_any_batch_has_a_number(recwarn: pytest.WarningsRecorder) -> None:
    stream = iter([torch.zeros(3)])
    ragged = [torch.zeros(2), torch.zeros(7)]
    assert [samples_or_one(batch) for batch in (object(), torch.zeros(0, 2), stream, ragged, "ab")] == [1, 1, 1, 2, 1]
    assert len(list(stream)) == 1  # still there
    assert not recwarn.list
