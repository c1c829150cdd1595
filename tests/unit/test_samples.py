"""How many samples a batch has."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from transformers import BatchEncoding

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.training.samples import batch_samples, samples_of, samples_or_one


@dataclasses.dataclass
class Pair:
    temperature: torch.Tensor
    x: torch.Tensor


class Graphs:
    """Of another library; its tensors go by nodes and edges."""

    num_graphs = 6


PACKED = pack_sequence([torch.zeros(3), torch.zeros(2)])
SCALAR = torch.tensor(3.0)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(3, 2), 3),
        ((torch.zeros(4, 2), torch.zeros(4)), 4),
        ({"ids": torch.zeros(5, 7, dtype=torch.long), "names": ["a", "b"]}, 5),
        ([{"x": torch.zeros(2)}], 2),
        ({"k": SCALAR, "x": torch.zeros(8, 2), "y": torch.zeros(8)}, 8),
        ((3.0, SCALAR, np.zeros((7, 2))), 7),
        (Pair(SCALAR, torch.zeros(9)), 9),
        (BatchEncoding({"input_ids": torch.zeros(4, 5)}), 4),
        (PACKED, 2),
        ((PACKED, torch.zeros(2)), 2),
        (Graphs(), 6),
        ((Graphs(), torch.zeros(6)), 6),
        (torch.zeros(0, 2), 0),
    ],
)
def test_the_first_dimension_that_all_tensors_share_counts(batch: Any, samples: int) -> None:
    assert batch_samples(batch) == samples
    assert samples_or_one(batch) == max(1, samples)


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (SCALAR, "no tensor with a first dimension"),
        ({"k": SCALAR, "n": 3, "names": ["a"]}, "no tensor with a first dimension"),
        (iter([torch.zeros(3)]), "no tensor with a first dimension"),
        ((torch.zeros(8, 2), torch.zeros(24)), r"different first dimensions \(8, 24\)"),
        ([torch.zeros(2), torch.zeros(7)], r"different first dimensions \(2, 7\)"),
    ],
)
def test_what_cannot_be_counted_is_refused(batch: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{why}.*parablock_batch_size"):
        batch_samples(batch)


def test_a_modules_own_count_comes_first() -> None:
    class Module:
        def __init__(self, count: Any) -> None:
            self.count = count

        def parablock_batch_size(self, batch: Any) -> Any:
            return self.count

    for exact in (True, False):
        assert samples_of(torch.zeros(3), Module(17), exact=exact) == 17
        assert samples_of(torch.zeros(3), object(), exact=exact) == 3
        for wrong in (-1, 1.5, None, True):
            with pytest.raises(ConfigurationError, match=r"Module\.parablock_batch_size must return a whole number"):
                samples_of(torch.zeros(3), Module(wrong), exact=exact)


def test_a_batch_without_a_tensor_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"a batch of type object has.*weighting='uniform'"):
        batch_samples(object())


def test_where_nothing_rests_on_it_any_batch_has_a_number(recwarn: pytest.WarningsRecorder) -> None:
    stream = iter([torch.zeros(3)])
    ragged = [torch.zeros(2), torch.zeros(7)]
    assert [samples_or_one(batch) for batch in (object(), torch.zeros(0, 2), stream, ragged, "ab")] == [1, 1, 1, 2, 1]
    assert len(list(stream)) == 1  # still there
    assert not recwarn.list
