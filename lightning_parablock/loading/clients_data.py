"""Whose data a turn trains on, and how long an epoch is, where the clients of a rank take turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage

from lightning_parablock.errors import ConfigurationError, DataError
from lightning_parablock.federation.cohorts import turns_of_a_round
from lightning_parablock.federation.collectives import Gather
from lightning_parablock.federation.names import NO_NAMES, ClientNames
from lightning_parablock.loading.client_loaders import ClientStream
from lightning_parablock.loading.lengths import length_of
from lightning_parablock.loading.shards import Cutting, cut, dataset_fingerprint, is_comparable
from lightning_parablock.seeds import LocalSeed, derive_seed
from lightning_parablock.settings import SecureAggregation, Settings


@dataclass(frozen=True)
class HostedClients:
    """A rank and its clients.

    Attributes:
        clients: Numbers of the clients that it hosts.
        rank: Its number.
        seed: Random seed of the run.
        gather: Collects a value of every rank, in rank order; collective.
        names: How clients are named in messages.
        local_seed: Seed of what these clients draw for themselves.
    """

    clients: tuple[int, ...]
    rank: int
    seed: int
    gather: Gather
    names: ClientNames = NO_NAMES
    local_seed: LocalSeed = field(default_factory=LocalSeed)


@dataclass(frozen=True)
class ClientsEpoch:
    """What the ranks have told each other: an epoch is as many rounds as it takes until cohorts have trained on as many
    batches as all clients have.

    Where a client's number of batches is not known: until as many clients have had their turn as there are.

    Attributes:
        batches: Number of batches of all clients together; None where one's is not known.
        samples: Training samples of each client; 1 for each where the numbers are unknown, or are not told.
        cohort: Number of clients per round.
        turns: Turns per round.
        n_ranks: Number of ranks.
    """

    batches: int | None
    samples: tuple[int, ...]
    cohort: int
    turns: int
    n_ranks: int

    def rounds(self, batches_a_turn: int) -> int:
        """Number of rounds of an epoch, with so many batches per turn."""
        return ceil(
            len(self.samples) / self.cohort if self.batches is None else self.batches / (self.cohort * batches_a_turn)
        )

    def n_batches(self, batches_a_turn: int) -> int:
        """Number of batches of an epoch, on every rank: whole rounds, idle turns included."""
        return self.rounds(batches_a_turn) * self.turns * batches_a_turn

    def said(self, batches_a_turn: int | None) -> str:
        """The same in words, for a message; None where the number of batches per turn is not known yet."""
        rounds = "as many rounds per epoch as the local steps to come make of it"
        if batches_a_turn is not None:
            rounds = f"{self.rounds(batches_a_turn)} rounds per epoch"
        clients = f"{len(self.samples)} clients on {self.n_ranks} ranks"
        return f"{clients}, {self.cohort} per round in {self.turns} turns, {rounds}"


def own_loaders(trainer: Trainer, hosted: HostedClients) -> dict[int, Any] | None:
    """What ``client_dataloader(client)`` of the data module, or else of the module, gives; None if neither has it."""
    for holder in (getattr(trainer, "datamodule", None), trainer.lightning_module):
        make = getattr(holder, "client_dataloader", None)
        if make is not None:
            return {client: make(client) for client in hosted.clients}
    return None


def shared_loaders(loader: Any, hosted: HostedClients, *, cuts: bool) -> dict[int, Any]:
    """Cut a rank's loader among its clients, and, where other ranks have the same data set, among theirs; collective.

    Args:
        loader: The rank's own.
        hosted: This rank and its clients.
        cuts: Whether to cut at all; else every client trains on all of it.

    Raises:
        DataError: the loader cannot be cut, or has fewer samples than clients.
    """
    if not cuts:
        return dict.fromkeys(hosted.clients, loader)
    told = hosted.gather((dataset_fingerprint(loader), hosted.clients))
    own_print = told[hosted.rank][0]
    sharing = list(hosted.clients)  # of a stream, which cannot be compared
    if is_comparable(loader):
        sharing = [client for other_print, clients in told if other_print == own_print for client in clients]
    if len(sharing) == 1:
        return {sharing[0]: loader}
    return {
        client: cut(
            loader,
            RunningStage.TRAINING,
            Cutting(client, hosted.seed, hosted.gather, local_seed=hosted.local_seed),
            sharing,
        )
        for client in hosted.clients
    }


def agree_on_epoch(loaders: Mapping[int, Any], hosted: HostedClients, settings: Settings) -> ClientsEpoch:
    """Tell each other what the length of an epoch depends on; collective.

    Raises:
        DataError: a client has no batch; the same on every rank.
    """
    tells_samples = not isinstance(settings.aggregation, SecureAggregation)
    told = hosted.gather(
        [(client, length_of(loader), _samples(loader) if tells_samples else 1) for client, loader in loaders.items()]
    )
    entries = [entry for rank in told for entry in rank]  # in their order: ranks host runs of neighbours
    empty = [client for client, length, _ in entries if length == 0]
    if empty:
        raise DataError(
            f"the training data of {hosted.names.label(empty[0])} have no batch ({len(empty)} of {len(entries)} "
            "clients have none); every client needs at least one"
        )
    n_clients, known = len(entries), [length for _, length, _ in entries if length is not None]
    return ClientsEpoch(
        batches=sum(known) if len(known) == n_clients else None,
        samples=tuple(samples for *_, samples in entries),
        cohort=settings.cohort or n_clients,
        turns=turns_of_a_round(settings.cohort, [[client for client, *_ in rank] for rank in told]),
        n_ranks=len(told),
    )


def streams_of(loaders: Mapping[int, Any], hosted: HostedClients) -> dict[int, ClientStream]:
    """The batches of each client, pass after pass."""
    return {
        client: ClientStream(
            loader, derive_seed(hosted.local_seed.of(hosted.seed), "loader", client), client, hosted.names
        )
        for client, loader in loaders.items()
    }


def refuse_reloading(trainer: Trainer) -> None:
    """Refuse loaders that are made or begun again while clients are in the middle of theirs.

    Raises:
        ConfigurationError: the trainer would do so.
    """
    if getattr(trainer, "overfit_batches", 0):
        raise ConfigurationError(
            "Trainer(overfit_batches=...) trains on the first batches again and again, and clients that take turns "
            "continue through all of theirs; give them smaller data sets"
        )
    if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
        raise ConfigurationError(
            "Trainer(reload_dataloaders_every_n_epochs=...) makes new loaders, and clients that take turns would lose "
            "their place in them; leave it out"
        )


def _samples(loader: Any) -> int:
    """Examples of a client in one pass, 1 where that is unknown: then all clients count the same."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None) or getattr(loader, "sampler", None)
    known = [length_of(told) for told in (sampler, getattr(loader, "dataset", None))]
    return next((length for length in known if length is not None), 1)
