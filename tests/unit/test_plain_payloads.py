"""What ranks send each other is data: what a peer sends cannot make this process run code, take memory, or hang."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_parablock.errors import ConfigurationError, ProtocolError
from lightning_parablock.meeting.introductions import Introduction
from lightning_parablock.settings import Settings
from lightning_parablock.system.again import run_again
from lightning_parablock.system.payloads import from_bytes, to_bytes

VALUES = (
    None,
    [1, 2.5, 1j, True, "text", b"bytes", b""],
    {"a": (1, {2, 3}), 4: torch.float16, "device": torch.device("cpu"), "size": torch.Size([2, 3])},
    [np.float32(0.1), np.int64(3)],
    Path("a/b"),
    Introduction(0, 2, "a", "host", 17),
    [Introduction(rank, 2, None, "host", 17) for rank in range(2)],
)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_plain_values_arrive_as_they_were_sent(value: Any) -> None:
    arrived = from_bytes(to_bytes(value, "it"), "it")
    assert arrived == value
    assert type(arrived) is type(value)


def test_tensors_arrive_with_their_bits() -> None:
    sent = [torch.randn(3, 2).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8)] + [torch.empty(0)]
    for before, after in zip(sent, from_bytes(to_bytes(sent, "it"), "it"), strict=True):
        assert torch.equal(before, after) and before.dtype == after.dtype


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        ({"module": {"layer": nn.ReLU()}}, "module.layer is a torch.nn.modules.activation.ReLU"),
        (Settings(), "lightning_parablock.settings.record.Settings"),  # its creation checks, and would run code
        (run_again, "it is a builtins.function"),
        (lambda: None, "function"),
        (open(os.devnull), "TextIOWrapper"),  # noqa: SIM115
    ],
)
def test_what_is_not_plain_is_refused_by_name_where_it_would_be_sent(value: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match="the facts: ") as refused:
        to_bytes(value, "the facts")
    assert named in str(refused.value)


class _Evil:
    """Calls what it likes where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def evil_payloads(mark: Path) -> dict[str, bytes]:
    """Messages that would create the file if one of them were unpickled carelessly."""
    command = f"touch {mark}"
    calls = {
        "system": _Evil(os.system, command),
        "eval": _Evil(eval, f"__import__('os').system({command!r})"),
        "in a list": [1, {"a": (_Evil(os.system, command),)}],
        "of this package": _Evil(run_again, command),
        "settings": _Evil(Settings, command),
        "a path that is created": _Evil(Path.touch, mark),
    }
    payloads = {f"plain pickle, {name}": pickle.dumps(call) for name, call in calls.items()}
    for name, call in calls.items():
        buffer = io.BytesIO()
        torch.save(call, buffer)
        payloads[f"torch.save, {name}"] = buffer.getvalue()
        buffer = io.BytesIO()
        torch.save(call, buffer, _use_new_zipfile_serialization=False)
        payloads[f"old torch.save, {name}"] = buffer.getvalue()
    return payloads


EVIL = sorted(evil_payloads(Path("mark")))


@pytest.mark.parametrize("name", EVIL)
def test_no_message_runs_code(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(ProtocolError, match="the greeting of rank 1: a peer sent what is no value"):
        from_bytes(evil_payloads(mark)[name], "the greeting of rank 1")
    assert not mark.exists()


def test_the_messages_are_evil(tmp_path: Path) -> None:
    """They do what they are feared for where they are unpickled carelessly."""
    mark = tmp_path / "mark"
    pickle.loads(evil_payloads(mark)["plain pickle, system"])
    assert mark.exists()


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_a_value_or_a_named_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="it: a peer sent"):
        from_bytes(data, "it")


@settings(max_examples=300, deadline=None)
@given(
    value=st.sampled_from([VALUES[1], VALUES[2], VALUES[5], torch.arange(5)]),
    places=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 40),
)
def test_damaged_messages_are_a_value_or_a_named_error(value: Any, places: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(to_bytes(value, "it"))
    for at, byte in places:
        data[at % len(data)] = byte
    try:
        from_bytes(bytes(data[: len(data) - cut]), "it")
    except ProtocolError as error:
        assert "it: a peer sent" in str(error)
