"""Tensors as raw little-endian bytes, described by names of types and lists of sizes that are checked before use."""

from __future__ import annotations

import math
import sys
from typing import Any, cast

import torch
from torch import Tensor

from lightning_parablock.errors import ProtocolError

DTYPES = {
    name: dtype
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    )
    if isinstance(dtype := getattr(torch, name, None), torch.dtype)
}
"""Types whose values can be sent, by the names that they have in messages."""

EVERY_DTYPE = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
"""All types that torch knows, for values that are a type. Asked for another name, torch may import a module of it."""

_MOST_DIMENSIONS = 64
_LONGEST = 1 << 48


def name_of(dtype: torch.dtype) -> str:
    """The name of a type in messages; one that is not in :data:`DTYPES` cannot be sent."""
    return str(dtype).removeprefix("torch.")


def read_shape(said: object) -> tuple[int, ...]:
    """The shape that a peer states.

    Raises:
        ProtocolError: it is no list of sizes.
    """
    sizes = cast(list[Any], said if isinstance(said, list | tuple) else [-1])
    if len(sizes) > _MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < _LONGEST for size in sizes):
        raise ProtocolError(f"{said!r:.40} is no shape")
    return tuple(sizes)


def n_bytes_of(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; a number without a limit, which is compared with what has arrived before memory is taken."""
    return math.prod(shape) * dtype.itemsize


def bytes_of(tensor: Tensor) -> memoryview:
    """The values of a tensor in the order of its dimensions; no copy of one on the CPU without gaps.

    Raises:
        TypeError: this machine stores numbers the other way round.
    """
    if sys.byteorder != "little":
        raise TypeError("tensors can be sent only between machines of little-endian byte order")
    values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return memory_of(values.reshape(-1).view(torch.uint8)).toreadonly()


def memory_of(flat: Tensor) -> memoryview:
    """The memory of a flat tensor of bytes."""
    array: Any = flat.numpy()
    return memoryview(array)


def refuse_other_truths(is_bool: bool, part: bytes | bytearray | memoryview) -> None:
    """Refuse bytes of a peer that are to be truth values, and of which one is neither 0 nor 1.

    Raises:
        ProtocolError: there is such a byte, with which torch and NumPy compute what no truth value gives.
    """
    if is_bool and bytes(part).translate(None, b"\0\1"):
        raise ProtocolError("a truth value is neither 0 nor 1")
