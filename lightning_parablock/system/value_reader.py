"""Values of a peer, from the JSON and the bytes that :mod:`value_writer` made of them.

Nothing takes more memory than a fixed multiple of what has arrived, nor more time: values cannot share parts or contain
each other, each byte beside the JSON is used once, and keys whose hashes collide are refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_parablock.errors import ProtocolError
from lightning_parablock.system.plain_records import record_of
from lightning_parablock.system.tensor_bytes import (
    DTYPES,
    EVERY_DTYPE,
    memory_of,
    n_bytes_of,
    read_shape,
    refuse_other_truths,
)
from lightning_parablock.system.value_writer import ARRAY_TYPES, MAPPINGS, MOST_DEPTH, MOST_ODD_KEYS, PATHS

_MOST_ALIKE = 64
"""-1 and -2 have one hash, and so have many tuples of them."""


class ValueReader:
    """Reads one value.

    Args:
        beside: The bytes beside the JSON; what is read from them is copied.
        device: Where tensors come that were not in host memory.
    """

    def __init__(self, beside: memoryview, device: torch.device) -> None:
        self._beside, self._device = beside, device
        self._tensors = list[Tensor]()
        self._truths = set[int]()  # the numbers of those whose bytes have been looked at: once each

    def whole(self, said: Any) -> Any:
        """The value of a message, which must use all bytes beside it.

        Raises:
            ProtocolError: it is no value.
            LookupError, TypeError, ValueError: the same, to be read under ``reading``.
        """
        value = self.read(said, 0)
        if self._beside.nbytes:
            raise ProtocolError(f"{self._beside.nbytes} bytes belong to no value")
        return value

    def read(self, said: Any, depth: int) -> Any:
        """A part of it, at a depth of nested containers."""
        kind = type(said)
        if kind is not dict and kind is not list:
            return said
        if depth > MOST_DEPTH:
            raise ProtocolError(f"it nests deeper than {MOST_DEPTH} levels")
        if kind is list:
            return self.each(said, depth)
        ((name, content),) = said.items()
        return _READERS[name](self, content, depth)

    def each(self, said: Any, depth: int) -> list[Any]:
        """The parts of a container."""
        if type(said) is not list:
            raise ProtocolError(f"{said!r:.40} is no list of values")
        return [self.read(one, depth + 1) for one in said]  # pyright: ignore[reportUnknownVariableType]

    def take(self, n_bytes: object) -> memoryview:
        """The next bytes beside the JSON."""
        if type(n_bytes) is not int or not 0 <= n_bytes <= self._beside.nbytes:
            raise ProtocolError(f"it states {n_bytes!r:.40} bytes where it has {self._beside.nbytes}")
        taken, self._beside = self._beside[:n_bytes], self._beside[n_bytes:]
        return taken

    def read_set(self, said: Any, depth: int) -> set[Any]:
        """A set."""
        keys = self.each(said, depth)
        return set(_distinct(keys))

    def read_mapping(self, kind: type[dict[Any, Any]], said: Any, depth: int) -> dict[Any, Any]:
        """A dict, or one of its kinds."""
        parts = self.each(said, depth)
        return kind(dict(zip(_distinct(parts[::2]), parts[1::2], strict=True)))

    def read_record(self, said: Any, depth: int) -> Any:
        """A record of this package."""
        name, values = said
        return record_of(name, self.each(values, depth))

    def read_number(self, said: Any) -> Any:
        """A number of NumPy."""
        return self.read_array((said, (), False))[()]

    def read_array(self, said: Any) -> Any:
        """An array of NumPy, in memory of its own."""
        name, sizes, is_fortran = said
        if name not in ARRAY_TYPES:
            raise ProtocolError(f"{name!r:.40} is no type of numbers")
        kind, shape = np.dtype(name), read_shape(sizes)
        part = self.take(math.prod(shape) * kind.itemsize)
        refuse_other_truths(kind.kind == "b", part)
        return np.frombuffer(bytearray(part), np.uint8).view(kind).reshape(shape, order="F" if is_fortran else "C")

    def read_tensor(self, said: Any) -> Tensor:
        """A tensor; it shares its memory with those of the message that have its number, and with no others."""
        number, name, sizes, order, (needs_grad, is_parameter, is_elsewhere) = said
        dtype, shape = DTYPES[name], read_shape(sizes)
        if sorted(order) != list(range(len(shape))):
            raise ProtocolError(f"{order!r:.40} is no order of {len(shape)} dimensions")
        flat = self._memory_of(number, n_bytes_of(dtype, shape), dtype, is_elsewhere is True)
        stored = flat.view(dtype).view([shape[one] for one in order])
        tensor = stored.permute([order.index(one) for one in range(len(order))])
        return _with_gradient(tensor, needs_grad is True, is_parameter is True)

    def _memory_of(self, number: object, n_bytes: int, dtype: torch.dtype, is_elsewhere: bool) -> Tensor:
        if type(number) is not int or not 0 <= number <= len(self._tensors):
            raise ProtocolError(f"{number!r:.40} is the number of no tensor")
        if number == len(self._tensors):
            part = self.take(n_bytes)
            flat = torch.empty(n_bytes, dtype=torch.uint8)
            memory_of(flat)[:] = part
            self._tensors.append(flat.to(self._device) if is_elsewhere else flat)
        flat = self._tensors[number]
        if flat.numel() != n_bytes:
            raise ProtocolError(f"a tensor of {n_bytes} bytes cannot have the memory of one of {flat.numel()}")
        if dtype is torch.bool and number not in self._truths:  # the memory may have come as another type's
            refuse_other_truths(True, memory_of(flat.cpu()))
            self._truths.add(number)
        return flat


def _with_gradient(tensor: Tensor, needs_grad: bool, is_parameter: bool) -> Tensor:
    if needs_grad and not (tensor.is_floating_point() or tensor.is_complex()):
        raise ProtocolError(f"a tensor of {tensor.dtype} has no gradient")
    return nn.Parameter(tensor, needs_grad) if is_parameter else tensor.requires_grad_(needs_grad)


def _distinct(keys: Sequence[Any]) -> Sequence[Any]:
    """Keys of a dict or a set, none of which comes twice, and few of which have one hash.

    Hashes of numbers and of tuples of them can be chosen; those of texts differ from process to process.
    """
    odd = [key for key in keys if type(key) is not str and type(key) is not bytes]
    if len(odd) > MOST_ODD_KEYS:
        raise ProtocolError(f"it has more than {MOST_ODD_KEYS} keys that are no texts")
    hashes = sorted(map(hash, odd))
    if any(one == other for one, other in zip(hashes, hashes[_MOST_ALIKE:], strict=False)):
        raise ProtocolError("keys of a dict or a set were chosen so that their hashes collide")
    if len(set(keys)) < len(keys):
        raise ProtocolError("a dict or a set has a key twice")
    return keys


def _doubles(said: str, number: int) -> tuple[float, ...]:
    data = bytes.fromhex(said)
    if len(data) != 8 * number:
        raise ProtocolError(f"{said!r:.40} is no {number} floating-point number(s)")
    return struct.unpack(f"<{number}d", data)


def _size(said: Any) -> torch.Size:
    return torch.Size(read_shape(said))


def _device(said: Any) -> torch.device:
    try:
        return torch.device(str(said))
    except RuntimeError as error:
        raise ProtocolError(f"{said!r:.40} is no device") from error


def _dtype(said: Any) -> torch.dtype:
    if type(said) is not str or said not in EVERY_DTYPE:
        raise ProtocolError(f"{said!r:.40} is no type of tensors")
    return EVERY_DTYPE[said]


_Read = Callable[[ValueReader, Any, int], Any]


def _mapping(kind: type[dict[Any, Any]]) -> _Read:
    return lambda reader, said, depth: reader.read_mapping(kind, said, depth)


_READERS: dict[str, _Read] = {
    "int": lambda reader, said, depth: int(said, 16),
    "float": lambda reader, said, depth: _doubles(said, 1)[0],
    "complex": lambda reader, said, depth: complex(*_doubles(said, 2)),
    "text": lambda reader, said, depth: str(reader.take(said), "utf-8", "surrogatepass"),
    "bytes": lambda reader, said, depth: bytes(reader.take(said)),
    "bytearray": lambda reader, said, depth: bytearray(reader.take(said)),
    "tuple": lambda reader, said, depth: tuple(reader.each(said, depth)),
    "set": ValueReader.read_set,
    **{name: _mapping(kind) for name, kind in MAPPINGS.items()},
    "record": ValueReader.read_record,
    "path": lambda reader, said, depth: PATHS[said[0]](str(reader.read(said[1], depth))),
    "dtype": lambda reader, said, depth: _dtype(said),
    "device": lambda reader, said, depth: _device(said),
    "size": lambda reader, said, depth: _size(said),
    "number": lambda reader, said, depth: reader.read_number(said),
    "array": lambda reader, said, depth: reader.read_array(said),
    "tensor": lambda reader, said, depth: reader.read_tensor(said),
}
