"""Captures of packets, and what of a run can be read in them."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.hosts import Host

_LIMIT_S = 30.0
_WINDOW_BYTES = 16
"""Of a parameter's values: long enough that chance does not bring them about, and short beside a packet."""
_WINDOWS = 40
"""Of each parameter."""


class Capture:
    """All packets of an interface, from now on.

    Args:
        start: Starts tcpdump, given its arguments.
        interface: Name of the interface.
        path: Where the packets are written.
    """

    def __init__(self, start: Callable[[list[str]], Host], interface: str, path: Path) -> None:
        self._path = path
        self._host = start(["tcpdump", "-i", interface, "-U", "-s", "0", "-B", "16384", "-Z", "root", "-w", str(path)])
        self._host.wait_for_line("listening on", _LIMIT_S)

    def end(self) -> bytes:
        """Stop; returns the file's bytes, which lack no packet."""
        self._host.send_signal(signal.SIGINT)
        self._host.wait(_LIMIT_S)
        (dropped,) = re.findall(r"^(\d+) packets dropped by kernel", self._host.log_text(), re.MULTILINE)
        assert dropped == "0", self._host.log_text()
        return self._path.read_bytes()


def windows_of(checkpoint: Path) -> Iterator[bytes]:
    """Bytes of each parameter of a saved model, from places all over it."""
    for values in torch.load(checkpoint, weights_only=True)["state_dict"].values():
        data = values.contiguous().numpy().tobytes()
        step = max(_WINDOW_BYTES, len(data) // _WINDOWS // 4 * 4)
        yield from (data[at : at + _WINDOW_BYTES] for at in range(0, len(data) - _WINDOW_BYTES, step))


def names_of(checkpoint: Path) -> set[bytes]:
    """Names of the parameters of a saved model, and of its layers."""
    names = torch.load(checkpoint, weights_only=True)["state_dict"]
    layers = {match[0] for name in names if (match := re.search(r"layers\.\d+", name))}
    return {name.encode() for name in {*names, *layers}}


def share_found(capture: bytes, markers: list[bytes]) -> float:
    """The share of some markers that can be read in a capture."""
    return sum(marker in capture for marker in markers) / len(markers)
