"""One listening socket per rank, shared by all its gloo groups, on a chosen address and port.

By itself every gloo group opens a listener of its own, on a port that the kernel chooses; gloo has no option for
either. So a device (gloo's name for a listener and the thread behind it) is opened here, and discarded and opened again
until its port is in the range. torch takes devices in the constructor of its gloo class alone, and ignores the
``pg_options`` of ``init_process_group`` and ``new_group`` for gloo; hence :func:`on_listeners`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.meeting.addresses import INTERFACE_VARIABLE
from lightning_parablock.settings.ports import PortRange

SEARCH_LIMIT_S = 60.0
_SAMPLES = 50_000
_ENOUGH_SAMPLES = 20
"""Of so many ports that the kernel gives to plain sockets, some 10 us each, so many must be in the range. A device
takes some 7 ms: with fewer, the search would often reach its limit."""
_PORT_RANGE_FILE = "/proc/sys/net/ipv4/ip_local_port_range"


@dataclass(frozen=True)
class Listener:
    """A gloo device and where it listens."""

    device: Any
    address: str
    port: int


_listeners: tuple[Listener, ...] = ()
"""Of this process, as the default group is: all groups use them until the default group is opened anew."""


def open_listeners(address: str, ports: PortRange | None, *, limit_s: float = SEARCH_LIMIT_S) -> tuple[Listener, ...]:
    """Open the device that all later gloo groups of this process share; before the default group.

    Args:
        address: Address of this machine for the other ranks. ``GLOO_SOCKET_IFNAME`` takes precedence: one device for
            each interface that it names.
        ports: The range in which each of them listens; None for any port.
        limit_s: Seconds in which to find a port of the range.

    Raises:
        ConfigurationError: no such address or interface, or no port of the range is to be had.
    """
    global _listeners
    _listeners = ()
    if ports is not None:
        refuse_unattainable(ports)
    interfaces = [name for name in os.environ.get(INTERFACE_VARIABLE, "").split(",") if name]
    openers = [lambda name=name: _open_on_interface(name) for name in interfaces]
    deadline_s = time.monotonic() + limit_s
    _listeners = tuple(
        _find(opener, ports, deadline_s, limit_s) for opener in openers or [lambda: _open_on_address(address)]
    )
    return _listeners


def refuse_unattainable(ports: PortRange) -> None:
    """Find out within half a second whether the kernel gives such ports often enough; not in a minute, with devices.

    Raises:
        ConfigurationError: it does not; the message names a range that works.
    """
    found = 0
    for _ in range(_SAMPLES):
        with socket.socket() as sample:
            # As gloo does. With this option Linux gives odd ports of the lower half of its range, while there are any.
            sample.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sample.bind(("", 0))
            found += sample.getsockname()[1] in ports
        if found == _ENOUGH_SAMPLES:
            return
    raise _unattainable(ports, f"of {_SAMPLES} ports that the kernel gave on request, {found} were among them")


@contextlib.contextmanager
def on_listeners() -> Generator[None]:
    """Gloo groups opened inside use the opened device; without one they open their own, as torch does."""
    if not _listeners:
        yield
        return
    original = distributed_c10d.ProcessGroupGloo
    distributed_c10d.ProcessGroupGloo = _class_on([listener.device for listener in _listeners])
    try:
        yield
    finally:
        distributed_c10d.ProcessGroupGloo = original


def open_group(backend: str, timeout_s: float) -> dist.ProcessGroup:
    """A new group over all ranks, for one purpose; collective."""
    with on_listeners():
        group = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group


def _class_on(devices: list[Any]) -> type[dist.ProcessGroupGloo]:
    gloo: Any = dist.ProcessGroupGloo  # torch's type stubs do not know its options

    class GlooOnDevices(dist.ProcessGroupGloo):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            options = gloo._Options()
            options._devices = devices
            options._timeout = timeout
            gloo.__init__(self, store, rank, size, options)

    return GlooOnDevices


def _open_on_interface(name: str) -> Any:
    try:
        return dist.ProcessGroupGloo.create_device(interface=name)
    except RuntimeError as error:
        known = ", ".join(known for _, known in socket.if_nameindex())
        raise ConfigurationError(
            f"{INTERFACE_VARIABLE} names the network interface {name!r}, which {socket.gethostname()} does not have or "
            f"which has no address; it has {known}"
        ) from error


def _open_on_address(address: str) -> Any:
    try:
        return dist.ProcessGroupGloo.create_device(hostname=address)
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {address} on {socket.gethostname()}: {error}; name the network interface that the other "
            f"sites reach: export {INTERFACE_VARIABLE}=eth0"
        ) from error


def _find(opener: Callable[[], Any], ports: PortRange | None, deadline_s: float, limit_s: float) -> Listener:
    while True:
        before = _listening()
        device = opener()
        new = [where for fd, where in _listening().items() if before.get(fd) != where]
        # Another thread may have opened a listener at the same time: then it is not known which one is gloo's.
        if len(new) == 1 and (ports is None or new[0][1] in ports):
            return Listener(device, *new[0])
        if time.monotonic() > deadline_s:
            raise _unattainable(ports, f"the kernel gave none of them within {limit_s:g} s")


def _listening() -> dict[int, tuple[str, int]]:
    """Address and port of each listening TCP socket of this process, by file descriptor."""
    found: dict[int, tuple[str, int]] = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # closed meanwhile
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as copy:
                    is_tcp = copy.family in (socket.AF_INET, socket.AF_INET6)
                    if is_tcp and copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found[fd] = copy.getsockname()[:2]
    return found


def _unattainable(ports: PortRange | None, why: str) -> ConfigurationError:
    first, last = _kernel_range()
    middle = first + (last - first) // 2
    wanted = ports or PortRange(first, last)
    return ConfigurationError(
        f"ports='{wanted}': {socket.gethostname()} cannot listen there: {why}. gloo lets the kernel choose the port, "
        f"which is taken from {first}-{last} (net.ipv4.ip_local_port_range), first from the lower half, "
        f"{first}-{middle}. Choose a range of some 100 ports in there that no other program uses, such as "
        f"'{_example(first, middle)}', or have the kernel choose from a range of your own in this container or network "
        f"namespace: sysctl -w net.ipv4.ip_local_port_range='{wanted.first} {max(wanted.last, wanted.first + 99)}'"
    )


def _kernel_range() -> tuple[int, int]:
    try:
        with open(_PORT_RANGE_FILE) as file:
            first, last = map(int, file.read().split())
    except OSError:
        return 32768, 60999  # Linux's own
    return first, last


def _example(first: int, middle: int) -> str:
    start = 40000 if first <= 40000 <= middle - 100 else first
    return f"{start}-{start + 99}"
