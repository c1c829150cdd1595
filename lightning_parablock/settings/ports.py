"""The option ``ports``: on which TCP ports a site accepts connections from the other sites."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from lightning_parablock.errors import ConfigurationError

T = TypeVar("T")

_LAST_PORT = 65535
_RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


@dataclass(frozen=True)
class PortRange:
    """TCP ports from ``first`` to ``last``, both included."""

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def opened_on_one_of(ports: Iterable[int], open_port: Callable[[int], T]) -> T:
    """What ``open_port`` returns for the first port that can be opened.

    Raises:
        OSError: none can: why the last one could not.
    """
    problem: OSError | None = None
    for port in ports:
        try:
            return open_port(port)
        except OSError as error:
            problem = error
    assert problem is not None, "a range has a port"
    raise problem


def read_ports(ports: str | int | None) -> PortRange | None:
    """The range that ``"40000-40099"`` or a single port stands for; None, any port, is passed through.

    Raises:
        ConfigurationError: not a range of TCP ports.
    """
    if ports is None:
        return None
    match = _RANGE.fullmatch(str(ports))
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= _LAST_PORT:
        raise ConfigurationError(
            f"ports must be a range of TCP ports, 1 to {_LAST_PORT}, both ends included, such as '40000-40099', "
            f"or null for any port; got {ports!r}"
        )
    return PortRange(first, last)
