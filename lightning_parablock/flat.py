"""A block as one contiguous vector: pack, unpack, hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_parablock.blocks import Block


class FlatBlocks:
    """Reads and writes the blocks of one module as flat vectors.

    Args:
        module: Its parameters are the only storage; nothing of the model's size is copied.
        blocks: A partition of (some of) its parameters.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[Block]) -> None:
        by_name = dict(module.named_parameters())
        self.blocks = list(blocks)
        self._parameters = [[by_name[name] for name in block.parameter_names] for block in blocks]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._parameters[0][0].device

    def parameters(self, block: int) -> list[nn.Parameter]:
        """The parameters of a block, in the order of its flat vector."""
        return self._parameters[block]

    @torch.no_grad()
    def pack(self, block: int) -> Tensor:
        """A fresh flat vector of shape (numel,) with the block's values now."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters[block]])

    @torch.no_grad()
    def unpack(self, block: int, flat: Tensor) -> None:
        """Write a flat vector of shape (numel,) into the block's parameters."""
        offset = 0
        for parameter in self._parameters[block]:
            part = flat[offset : offset + parameter.numel()]
            parameter.copy_(part.view_as(parameter))
            offset += parameter.numel()
        if offset != flat.numel():
            raise ValueError(f"block {self.blocks[block].name!r} has {offset} scalars, the vector has {flat.numel()}")


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the bytes of the tensors, in order: equal bits give equal hashes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        data = tensor.detach().contiguous().cpu()
        digest.update(data.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
