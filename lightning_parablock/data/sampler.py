"""The order in which a client sees its examples: a pure function of (seed, client, epoch), and of a salt if any."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from lightning_parablock.seeds import LocalSeed


def order_seed(seed: int, client_id: int, epoch: int) -> int:
    """A 63-bit seed from (seed, client, epoch); near numbers give unrelated seeds."""
    digest = hashlib.sha256(f"examples/{seed}/{client_id}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class ClientSampler(Sampler[int]):
    """A fresh permutation each epoch from a generator of its own, never from the global random state.

    Lightning calls :meth:`set_epoch` at the start of every epoch.

    Args:
        n_examples: Examples of this client.
        seed: Seed of the run.
        client_id: This client's number, from 0.

    Attributes:
        local_seed: Puts the site's salt into the seed of the orders; a run sets it before anything is drawn.
    """

    is_of_one_client = True
    """The data set behind it is one client's alone already, and is not to be cut."""

    def __init__(self, n_examples: int, seed: int, client_id: int) -> None:
        self.n_examples, self.seed, self.client_id, self.epoch = n_examples, seed, client_id, 0
        self.local_seed: LocalSeed | None = None

    @property
    def draws_order(self) -> bool:
        """Whether another salt gives another order."""
        return self.local_seed is not None

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of ``epoch``, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_examples

    def __iter__(self) -> Iterator[int]:
        seed = self.seed if self.local_seed is None else self.local_seed.of(self.seed)
        generator = torch.Generator().manual_seed(order_seed(seed, self.client_id, self.epoch))
        return (int(index) for index in torch.randperm(self.n_examples, generator=generator))
