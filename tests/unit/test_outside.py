"""What tells that a frozen parameter has changed."""

from __future__ import annotations

import pytest
import torch

from lightning_parablock.training.outside import fingerprint


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("numel", [0, 1, 3, 8, 1001, 200_003])
def test_any_scalar_that_changes_changes_it(dtype: torch.dtype, numel: int) -> None:
    values = torch.zeros(numel, dtype=dtype)
    before = fingerprint(values)
    assert fingerprint(values.clone()) == before
    for place in {0, numel // 2, numel - 1} if numel else ():
        changed = values.clone()
        changed[place] = 1
        assert fingerprint(changed) != before


def test_it_depends_on_the_order_and_not_on_the_layout() -> None:
    values = torch.randn(300, 700)
    swapped = values[torch.tensor([1, 0, *range(2, 300)])]
    assert fingerprint(swapped) != fingerprint(values)
    assert fingerprint(values.t().contiguous().t()) == fingerprint(values)
    odd = torch.randn(1001).to(torch.bfloat16)
    assert fingerprint(odd[1:]) == fingerprint(odd[1:].clone())  # not at a multiple of 8 bytes


def test_the_last_bit_of_one_scalar_counts() -> None:
    values = torch.randn(10_000)
    changed = values.clone()
    changed[777] = torch.nextafter(changed[777], torch.tensor(9.0))
    assert fingerprint(changed) != fingerprint(values)
