"""The store in which the ranks of a run meet: one rank, or the launcher, hosts it, and the others connect to it."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import (
    DistError,
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.distributed.distributed_c10d import Store

from lightning_parablock.errors import ConfigurationError, PeerTimeoutError
from lightning_parablock.transport.limited_wait import LimitedWait

_TRY_S = 2.0
_PAUSE_S = 0.25
_RESOLVE_S = 30.0
"""A name that no server knows may be known a little later, where machines are started together with the run."""
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Address:
    """Where the store listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def launcher_hosts_store() -> bool:
    """Whether torchrun has opened the store in a process of its own."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def host_store(address: Address, wait: LimitedWait) -> Store:
    """Open the store in this process.

    Raises:
        ConfigurationError: the port is taken, or the address is not this machine's.
    """
    try:
        return TCPStore(
            address.host,
            address.port,
            is_master=True,
            timeout=timedelta(seconds=max(wait.remaining_s, 1.0)),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except DistError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise ConfigurationError(
                f"port {address.port} of {socket.gethostname()}, where the ranks are to meet, is taken by another "
                "program or an earlier run; end it, or choose another port"
            ) from error
        raise ConfigurationError(
            f"this process ({socket.gethostname()}) is to host the meeting at {address} and cannot: {_line(error)}; "
            "the first rank must run on the machine that has this address"
        ) from error


def connect_store(address: Address, wait: LimitedWait) -> Store:
    """Connect to the store of another process, which may come later; tries until the limit.

    Raises:
        ConfigurationError: the name is not known, or what answers is no store.
        PeerTimeoutError: no process has opened the store within the limit.
    """
    _wait_for_listener(address, wait)
    limit_s = min(_ANSWER_S, max(wait.remaining_s, 1.0))
    try:
        store = TCPStore(address.host, address.port, timeout=timedelta(seconds=limit_s), wait_for_workers=False)
    except DistError as error:
        raise ConfigurationError(
            f"the program that listens at {address} does not answer as the store of a run: {_line(error)}; is the port "
            "another program's? Choose another one"
        ) from error
    store.set_timeout(timedelta(seconds=max(wait.remaining_s, 1.0)))
    return store


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
                f"no process has opened the meeting at {address} within meeting_timeout_s={wait.limit_s:g} s "
                f"({problem}); start the first rank there, and let this machine reach port {address.port} by TCP"
            )
        wait.report(lambda problem=problem: f"the first rank to open the meeting at {address} ({problem})")
        time.sleep(max(0.0, _PAUSE_S - (time.monotonic() - tried_s)))


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
