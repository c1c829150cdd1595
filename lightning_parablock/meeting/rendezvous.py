"""The store in which the ranks of a run meet: one rank, or the launcher, hosts it, and the others connect to it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import (
    DistError,
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.distributed.distributed_c10d import Store

from lightning_parablock.errors import ConfigurationError, PeerTimeoutError
from lightning_parablock.system.limited_wait import LimitedWait

_TRY_S = 2.0
_PAUSE_S = 0.25
_RESOLVE_S = 30.0
"""Time for a host name to become resolvable, since machines may be started together with the run."""
_ANSWER_S = 10.0
_WAITING = 1024
"""Connections that wait to be accepted: all ranks come at once."""
_private: set[Address] = set()
"""Where stores of this process have listened at one address alone."""


class _PortTaken(ConfigurationError):
    """Another program listens on the port."""


@dataclass(frozen=True)
class Address:
    """Host and port of the store."""

    host: str
    port: int

    @staticmethod
    def parse(option: str, text: object) -> Address:
        """Parse ``host:port`` or ``[IPv6]:port``.

        Raises:
            ConfigurationError: the text is neither; the message names the option.
        """
        host, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
        bare = host.removeprefix("[").removesuffix("]")
        if not bare or (":" in bare and bare == host) or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigurationError(f"{option} must be host:port, such as hub.example.org:29500, got {text!r}")
        return Address(bare, int(port))

    @property
    def is_here(self) -> bool:
        """Whether this machine has the address."""
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return any(_can_bind(family, place) for family, _, _, _, place in found)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def describe(self) -> str:
        """The address for messages, marked if it is one that other machines cannot use."""
        alone = self.host in ("localhost", "::1") or self.host.startswith("127.")
        return f"{self} (this machine alone)" if alone else str(self)


def launcher_hosts_store() -> bool:
    """Whether torchrun has opened the store in a process of its own."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def open_store(address: Address, wait: LimitedWait, *, is_private: bool = False) -> tuple[Store, bool]:
    """Host the store if the address is this machine's and no other process hosts it; otherwise connect to it.

    Args:
        address: Where it is.
        wait: Limit for connecting.
        is_private: See :func:`host_store`.

    Returns:
        The store, and whether this process hosts it.

    Raises:
        ConfigurationError: the name is not known, or another program uses the port.
        PeerTimeoutError: no process has opened the store within the limit.
    """
    if address.is_here:
        with contextlib.suppress(_PortTaken):  # by a store of another site on this machine; otherwise connecting fails
            return host_store(address, is_private=is_private), True
    return connect_store(address, wait), False


def host_store(address: Address, *, is_private: bool = False) -> Store:
    """Open the store in this process.

    Args:
        address: Its address.
        is_private: Listen at this address alone; otherwise at all addresses of this machine, as torch does by itself.

    Raises:
        ConfigurationError: the port is taken, or the address is not this machine's.
    """
    try:
        return TCPStore(
            address.host,
            address.port,
            is_master=True,
            timeout=timedelta(seconds=_ANSWER_S),
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=_listening(address, is_private=is_private),
        )
    except (DistError, OSError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise _PortTaken(
                f"port {address.port} of {socket.gethostname()}, where the ranks are to meet, is taken by another "
                "program or an earlier run; end it, or choose another port"
            ) from error
        raise ConfigurationError(
            f"this process ({socket.gethostname()}) is to host the meeting at {address} and cannot: {one_line(error)}; "
            "the first rank must run on the machine that has this address"
        ) from error


def _listening(address: Address, *, is_private: bool) -> int | None:
    """Descriptor of a socket that listens at the address alone, which the store takes over; None for torch's own."""
    if not is_private:
        return None
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listening = socket.create_server((address.host, address.port), family=family, backlog=_WAITING)
    except OSError:
        if address in _private:  # by the store of an earlier fit of this process, which torch finds by its port
            return None
        raise
    _private.add(address)
    return listening.detach()


def connect_store(address: Address, wait: LimitedWait) -> Store:
    """Connect to the store of another process, which may start later; tries until the limit.

    Raises:
        ConfigurationError: the name is not known, or another program than a store answers.
        PeerTimeoutError: no process has opened the store within the limit.
    """
    _wait_for_listener(address, wait)
    opened: list[Store | DistError] = []

    def connect() -> None:
        try:
            opened.append(
                TCPStore(address.host, address.port, timeout=timedelta(seconds=_ANSWER_S), wait_for_workers=False)
            )
        except DistError as error:
            opened.append(error)

    # torch waits without a limit for the answer of a silent listener.
    thread = threading.Thread(target=connect, daemon=True, name="parablock-store")
    thread.start()
    thread.join(2 * _ANSWER_S)
    if opened and isinstance(opened[0], Store):
        return opened[0]
    why = f": {one_line(opened[0])}" if opened and isinstance(opened[0], DistError) else ""
    raise ConfigurationError(
        f"the program that listens at {address} does not answer as the store of a run{why}; if the port is another "
        "program's, choose another one"
    )


def _wait_for_listener(address: Address, wait: LimitedWait) -> None:
    unknown_s = 0.0
    while True:
        tried_s = time.monotonic()
        try:
            socket.create_connection((address.host, address.port), timeout=_TRY_S).close()
            return
        except socket.gaierror as error:
            unknown_s += max(_PAUSE_S, time.monotonic() - tried_s)
            if unknown_s > _RESOLVE_S or wait.is_over:
                raise ConfigurationError(
                    f"the ranks are to meet at {address}, but {address.host!r} cannot be looked up ({error.strerror}); "
                    "use a name or an address that every machine of the run can look up"
                ) from error
            problem = str(error.strerror)
        except OSError as error:
            problem = str(error.strerror or error)
        if wait.is_over:
            raise PeerTimeoutError(
                f"no process has opened the meeting at {address.describe()} within "
                f"meeting_timeout_s={wait.limit_s:g} s ({problem}); start the first rank there, "
                f"and let this machine reach port {address.port} by TCP"
            )
        wait.report(lambda problem=problem: f"the first rank to open the meeting at {address.describe()} ({problem})")
        time.sleep(max(0.0, _PAUSE_S - (time.monotonic() - tried_s)))


def _can_bind(family: int, place: tuple[Any, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((place[0], 0, *place[2:]))
        except OSError:
            return False
    return True


def one_line(error: BaseException) -> str:
    """First line of the error's text; torch's errors fill a screen."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
