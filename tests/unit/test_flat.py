"""A block as one vector: what is packed comes back, in the order of the block's names."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from lightning_parablock.blocks.flat import FlatBlocks, hash_tensors
from lightning_parablock.blocks.partition import Block


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.arange(6.0).view(2, 3))
        self.b = nn.Parameter(torch.tensor(6.0))
        self.c = nn.Parameter(torch.arange(7.0, 15.0).view(4, 2).t())  # not contiguous


def flat_of(module: nn.Module) -> FlatBlocks:
    return FlatBlocks(module, [Block("ca", ("c", "a"), 14), Block("b", ("b",), 1)])


def test_pack_lays_parameters_side_by_side_in_the_blocks_order() -> None:
    packed = flat_of(Three()).pack(0)
    assert packed.tolist() == [7, 9, 11, 13, 8, 10, 12, 14, 0, 1, 2, 3, 4, 5]
    assert packed.dtype == torch.float32


def test_pack_is_a_copy_without_a_graph() -> None:
    module = Three()
    packed = flat_of(module).pack(1)
    assert packed.shape == (1,)
    assert not packed.requires_grad
    packed.zero_()
    assert module.b.item() == 6


def test_unpack_writes_what_pack_reads_and_nothing_else() -> None:
    module = Three()
    flat = flat_of(module)
    value = torch.randn(14, generator=torch.Generator().manual_seed(0))
    flat.unpack(0, value)
    assert torch.equal(flat.pack(0), value)
    assert module.b.item() == 6
    assert torch.equal(module.a, value[8:].view(2, 3))


def test_unpack_keeps_the_parameter_objects_and_their_flags() -> None:
    module = Three()
    before = module.a.data_ptr()
    module.a.requires_grad_(False)
    flat_of(module).unpack(0, torch.zeros(14))
    assert module.a.data_ptr() == before
    assert not module.a.requires_grad
    assert module.c.requires_grad


def test_pack_and_unpack_keep_every_bit() -> None:
    module = Three()
    flat = flat_of(module)
    odd = torch.tensor([-0.0, float("inf"), float("nan"), 1e-45, -1e-45, 1 / 3] + [0.1] * 8)
    flat.unpack(0, odd)
    assert hash_tensors([flat.pack(0)]) == hash_tensors([odd])


@pytest.mark.parametrize("length", [13, 15])
def test_a_vector_of_another_length_is_refused(length: int) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        flat_of(Three()).unpack(0, torch.zeros(length))


def test_the_hash_is_that_of_the_bytes() -> None:
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([[3], [4]])]
    expected = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
    assert hash_tensors(tensors) == expected
    assert hash_tensors(iter(tensors)) == expected


def test_the_hash_notices_one_bit_and_the_sign_of_zero() -> None:
    value = torch.ones(1000)
    before = hash_tensors([value])
    value[500] = torch.nextafter(value[500], torch.tensor(2.0))
    assert hash_tensors([value]) != before
    assert hash_tensors([torch.tensor([0.0])]) != hash_tensors([torch.tensor([-0.0])])


def test_a_single_scalar_of_a_wide_row_is_hashed_as_itself() -> None:
    column = torch.arange(6).view(2, 3)[:1, :1]  # contiguous, says torch, with a stride of 3
    assert column.is_contiguous() and column.stride() == (3, 1) and column.T.stride()[-1] == 3
    assert hash_tensors([column.T]) == hash_tensors([torch.tensor([0])])
    assert hash_tensors([torch.empty(0, 3), torch.tensor(2.5)]) == hash_tensors([torch.tensor([2.5])])


def test_what_a_parameter_can_hold_is_the_same_during_the_optimizers_step() -> None:
    """A communication thread asks at any time; parameters then show their float32 master copy."""
    flat = flat_of(Three().bfloat16())
    values = torch.linspace(0, 1, 14)
    expected = flat.as_held(0, values)
    assert not torch.equal(expected, values)
    flat.open_master(0)
    flat.put_master_in_place()
    assert torch.equal(flat.as_held(0, values), expected)
    flat.take_master_back()
    assert torch.equal(flat.as_held(0, values), expected)
