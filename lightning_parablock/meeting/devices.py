"""One listening socket per rank, shared by all its gloo groups, on a chosen address and port.

By default every gloo group opens a listener of its own, on a port chosen by the kernel; gloo has no option for either.
Therefore a device (gloo's name for a listener and its thread) is opened here, and discarded and opened again until its
port is in the range. torch accepts devices only in the constructor of its gloo class, and ignores the ``pg_options`` of
``init_process_group`` and ``new_group`` for gloo; hence :func:`on_listeners`.
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
from typing import Any, TypeAlias

import torch.distributed as dist
from torch.distributed import distributed_c10d

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.meeting.addresses import INTERFACE_VARIABLE
from lightning_parablock.meeting.connections import given_up_after
from lightning_parablock.meeting.gloo_peers import GlooPeers
from lightning_parablock.settings.ports import PortRange

SEARCH_LIMIT_S = 60.0
_SAMPLES = 50_000
_ENOUGH_SAMPLES = 20
"""Minimum number of ports in the range among ``_SAMPLES`` ports that the kernel assigns to plain sockets, about 10 us
each. A device takes about 7 ms: with fewer ports, the search would often reach its limit."""
_PORT_RANGE_FILE = "/proc/sys/net/ipv4/ip_local_port_range"


@dataclass(frozen=True)
class Listener:
    """A gloo device with its address and port."""

    device: Any
    address: str
    port: int


_listeners: tuple[Listener, ...] = ()
"""One set per process, like the default group: all groups use them until the default group is opened again."""
_peers: GlooPeers | None = None
"""Of these listeners, where a federation says whose they are."""

InUse: TypeAlias = tuple[tuple[Listener, ...], GlooPeers | None]
OWN_OF_EACH: InUse = ((), None)
"""Every group opens listeners of its own."""


def listeners_in_use() -> InUse:
    """What groups use that are opened now, for :func:`use_listeners`."""
    return _listeners, _peers


def use_listeners(in_use: InUse) -> None:
    """Open all later groups on these listeners."""
    global _listeners, _peers
    _listeners, _peers = in_use


def open_listeners(address: str, ports: PortRange | None, *, limit_s: float = SEARCH_LIMIT_S) -> tuple[Listener, ...]:
    """Open the device that all later gloo groups of this process share; before the default group.

    Args:
        address: Address of this machine for the other ranks. ``GLOO_SOCKET_IFNAME`` takes precedence: one device for
            each interface that it names.
        ports: Range of ports in which each device listens; None for any port.
        limit_s: Time limit in seconds for finding a port in the range.

    Raises:
        ConfigurationError: the address or interface does not exist, or no port in the range is available.
    """
    global _listeners, _peers
    _listeners, _peers = (), None
    if ports is not None:
        refuse_unattainable(ports)
    interfaces = [name for name in os.environ.get(INTERFACE_VARIABLE, "").split(",") if name]
    openers = [lambda name=name: _open_on_interface(name) for name in interfaces]
    deadline_s = time.monotonic() + limit_s
    _listeners = tuple(
        _find(opener, ports, deadline_s, limit_s) for opener in openers or [lambda: _open_on_address(address)]
    )
    return _listeners


def expect_peers(peers: GlooPeers) -> None:
    """Let every group that is opened on the listeners be connected to these sites alone."""
    global _peers
    _peers = peers


def refuse_other_ports(ports: PortRange) -> None:
    """Refuse a process group that was opened before, unless its listeners are in the range.

    Raises:
        ConfigurationError: one is not, or the program itself has opened the group.
    """
    outside = [listener.port for listener in _listeners if listener.port not in ports]
    if outside or not _listeners:
        where = f"listens on port {outside[0]}" if outside else "listens wherever the program has opened it"
        raise ConfigurationError(
            f"ports='{ports}', but the process group was opened before, and {where}: give every strategy of the "
            "program the same ports, and leave init_process_group to them"
        )


def refuse_unattainable(ports: PortRange) -> None:
    """Check within half a second that the kernel assigns such ports often enough; with devices it would take a minute.

    Raises:
        ConfigurationError: the kernel does not; the message names a range that works.
    """
    found = 0
    for _ in range(_SAMPLES):
        with socket.socket() as sample:
            # As gloo does. With this option Linux assigns odd ports of the lower half of its range, if there are any.
            sample.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sample.bind(("", 0))
            found += sample.getsockname()[1] in ports
        if found == _ENOUGH_SAMPLES:
            return
    raise _unattainable(ports, f"of {_SAMPLES} ports that the kernel gave on request, {found} were among them")


@contextlib.contextmanager
def on_listeners() -> Generator[None]:
    """Make gloo groups opened in this context use the open devices; without any they open their own, as usual."""
    if not _listeners:
        yield
        return
    original = distributed_c10d.ProcessGroupGloo
    distributed_c10d.ProcessGroupGloo = _class_on([listener.device for listener in _listeners], _peers)
    try:
        yield
    finally:
        distributed_c10d.ProcessGroupGloo = original


def open_group(backend: str, timeout_s: float) -> dist.ProcessGroup:
    """Open a new group over all ranks, for one purpose; collective."""
    with on_listeners():
        group = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group


def open_apart(
    store: distributed_c10d.Store, rank: int, size: int, timeout_s: float, *, silence_s: float
) -> dist.ProcessGroupGloo:
    """Open a gloo group that is no part of torch's default group or its registry; all its ranks call at once.

    Args:
        store: A store that only this group uses.
        rank: Rank of this process in the group.
        size: Number of ranks.
        timeout_s: Limit for connecting to all others.
        silence_s: See :func:`~lightning_parablock.meeting.connections.given_up_after`.

    Raises:
        RuntimeError: another rank did not connect in time.
    """
    gloo: Any = dist.ProcessGroupGloo  # torch's type stubs lack its options
    options = gloo._Options()
    options._devices = [listener.device for listener in _listeners] or [gloo.create_default_device()]
    options._timeout = timedelta(seconds=timeout_s)
    with given_up_after(silence_s):
        return gloo(store, rank, size, options)


def _class_on(devices: list[Any], peers: GlooPeers | None) -> type[dist.ProcessGroupGloo]:
    gloo: Any = dist.ProcessGroupGloo  # torch's type stubs lack its options

    class GlooOnDevices(dist.ProcessGroupGloo):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            options = gloo._Options()
            options._devices = devices
            options._timeout = timeout
            # Here, and not later: the others open no further group before this one is open everywhere.
            with contextlib.nullcontext() if peers is None else peers.checked():
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
        # Another thread may have opened a listener at the same time: then gloo's cannot be identified.
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
