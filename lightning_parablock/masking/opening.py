"""Sums of masked values, read as what they are once every site's part is in them."""

from __future__ import annotations

from torch import Tensor

from lightning_parablock.errors import SecureSumError


def check_opened(sums: Tensor, n_clients: int, limit: int, where: str) -> None:
    """Make sure that sums are ones that the clients can have: of these, at most N values of magnitude L.

    A mask that has not cancelled leaves uniformly distributed numbers, of which 12 in 100 are out of bounds with one
    byte and 16 clients: a part of any length is noticed.

    Args:
        sums: Of the ring's signed type, any shape.
        n_clients: N: clients in the sums.
        limit: L: largest magnitude of one client's value.
        where: Round, block and scalars, for the message.

    Raises:
        SecureSumError: a sum is out of bounds.
    """
    if not sums.numel():
        return
    low, high = (int(bound.item()) for bound in sums.aminmax())
    if max(-low, high) > n_clients * limit:
        raise SecureSumError(
            f"{where}: a sum of {n_clients} clients lies between {low} and {high}, and none may exceed "
            f"{n_clients * limit}; the masks did not cancel: a site's part is missing, was damaged, or was masked for "
            "other sites or another session; no part of it may be used"
        )
