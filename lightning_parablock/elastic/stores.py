"""The stores in which the members of a generation tell each other where they listen; every site hosts one."""

from __future__ import annotations

from datetime import timedelta

from torch.distributed import (
    DistError,
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.distributed.distributed_c10d import Store

from lightning_parablock.errors import UnreachableError
from lightning_parablock.meeting.rendezvous import one_line


def host_store() -> TCPStore:
    """A store of this process, at any free port."""
    return TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)


def join_store(address: str, limit_s: float) -> Store:
    """The store of another site.

    Args:
        address: ``host:port``.
        limit_s: Limit for connecting, and for each wait in it.

    Raises:
        UnreachableError: nothing answers there.
    """
    host, _, port = address.rpartition(":")
    try:
        return TCPStore(
            host.removeprefix("[").removesuffix("]"),
            int(port),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=limit_s),
        )
    except DistError as error:
        raise UnreachableError(f"the store at {address} cannot be reached: {one_line(error)}", "refused") from error
