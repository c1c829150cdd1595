"""A block as one contiguous vector: pack, unpack, hash."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_parablock.blocks.partition import Block


class FlatBlocks:
    """Reads and writes the blocks of one module as flat vectors in float32.

    Where parameters are less exact (bfloat16), the block that trains has a float32 master copy, so that a small step is
    not lost to rounding: it is what the optimizer changes, and what is packed.

    Args:
        module: Its parameters are the only storage; nothing of the model's size is copied.
        blocks: A partition of (some of) its parameters.

    Attributes:
        is_exact: Whether every parameter of every block is float32.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[Block]) -> None:
        by_name = dict(module.named_parameters())
        self.blocks = list(blocks)
        self._parameters = [[by_name[name] for name in block.parameter_names] for block in blocks]
        # Noted now: during the optimizer's step parameters show the float32 master copy, and servers round meanwhile.
        self._held_types = [[parameter.dtype for parameter in block] for block in self._parameters]
        self.is_exact = all(dtype == torch.float32 for block in self._held_types for dtype in block)
        self._masters: dict[int, list[Tensor]] = {}
        self._aside: list[tuple[Tensor, Tensor | None]] = []

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._parameters[0][0].device

    def parameters(self, block: int) -> list[nn.Parameter]:
        """The parameters of a block, in the order of its flat vector."""
        return self._parameters[block]

    @torch.no_grad()
    def pack(self, block: int) -> Tensor:
        """A fresh flat vector of shape (numel,), float32, with the block's values now."""
        values = self._masters.get(block, self._parameters[block])
        return torch.cat([value.detach().reshape(-1).to(torch.float32) for value in values])

    @torch.no_grad()
    def difference(self, block: int, start: Tensor) -> Tensor:
        """A fresh flat vector with the block's values now less ``start``, both of shape (numel,), float32."""
        difference = torch.empty_like(start)
        values = self._masters.get(block, self._parameters[block])
        for value, before, into in zip(values, self.parts(block, start), self.parts(block, difference), strict=True):
            torch.sub(value.detach().to(torch.float32), before, out=into)
        return difference

    @torch.no_grad()
    def unpack(self, block: int, flat: Tensor) -> None:
        """Write a flat vector of shape (numel,) into the block's parameters, and into its master copy if it has one."""
        for values in (self._parameters[block], self._masters.get(block, [])):
            for value, part in zip(values, self.parts(block, flat), strict=False):
                value.copy_(part)

    def as_held(self, block: int, flat: Tensor, first: int = 0) -> Tensor:
        """A part of a flat vector as the block's parameters can hold it: rounded to their types, and back.

        May be called by any thread at any time.

        Args:
            block: Index of the block.
            flat: Shape (scalars,), float32; it is returned itself where nothing is to be rounded.
            first: Index in the block of its first scalar.
        """
        if self.is_exact:
            return flat
        rounded, start = flat.clone(), 0
        for parameter, dtype in zip(self._parameters[block], self._held_types[block], strict=True):
            low, high = max(0, start - first), max(0, min(flat.numel(), start + parameter.numel() - first))
            if low < high:
                rounded[low:high] = flat[low:high].to(dtype)
            start += parameter.numel()
        return rounded

    def parts(self, block: int, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector in the shapes of the block's parameters."""
        parameters = self._parameters[block]
        sizes = [parameter.numel() for parameter in parameters]
        if sum(sizes) != flat.numel():
            name = self.blocks[block].name
            raise ValueError(f"block {name!r} has {sum(sizes)} scalars, the vector has {flat.numel()}")
        return [part.view(parameter.shape) for parameter, part in zip(parameters, flat.split(sizes), strict=True)]

    # --- the master copy ----------------------------------------------------------------------------------------------

    def open_master(self, block: int) -> None:
        """Begin to keep the block's values in float32, where its parameters are not."""
        if not self.is_exact:
            copies = [p.detach().to(torch.float32, copy=True) for p in self._parameters[block]]
            self._masters = {block: copies}

    def close_master(self) -> None:
        """Drop the master copy; the parameters keep its rounded values."""
        self._masters = {}

    def put_master_in_place(self) -> None:
        """Let the optimizer see the master copy and float32 gradients in the block's parameters."""
        for block, masters in self._masters.items():
            for parameter, master in zip(self._parameters[block], masters, strict=True):
                gradient = parameter.grad
                self._aside.append((parameter.data, gradient))
                parameter.grad, parameter.data = None, master
                parameter.grad = None if gradient is None else gradient.to(torch.float32)

    def take_master_back(self) -> None:
        """After the optimizer's step: the parameters show the master copy's rounded values again."""
        aside, self._aside = self._aside, []
        for block, masters in self._masters.items():
            for parameter, master, (low, gradient) in zip(self._parameters[block], masters, aside, strict=False):
                low.copy_(master)
                parameter.grad, parameter.data = None, low
                parameter.grad = gradient


def is_finite(values: Tensor) -> bool:
    """Whether no scalar of a floating-point tensor is NaN or infinite; one pass without a copy."""
    if not values.numel():
        return True
    low, high = torch.aminmax(values.detach())  # both are NaN where one scalar is
    return math.isfinite(low.item()) and math.isfinite(high.item())


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the bytes of the tensors, in order: equal bits give equal hashes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's scalars as bytes, in order of its indices, on the host."""
    data = tensor.detach().contiguous().cpu()
    # Not view(-1): a single scalar counts as contiguous whatever its stride is, and view keeps the stride.
    return data.as_strided((data.numel(),), (1,)).view(torch.uint8).numpy().data
