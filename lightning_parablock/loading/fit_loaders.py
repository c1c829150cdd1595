"""Every data loader of one run of a trainer, from the user's own to the one that Lightning iterates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_parablock.federation.names import ClientNames
from lightning_parablock.lightning_private.fit import batches_fetched_ahead, renew_epoch_length, training_loaders
from lightning_parablock.loading.client_loaders import ClientsLoader, TurnId
from lightning_parablock.loading.clients_data import (
    ClientsEpoch,
    HostedClients,
    agree_on_epoch,
    own_loaders,
    refuse_reloading,
    shared_loaders,
    streams_of,
)
from lightning_parablock.loading.digests import data_digests
from lightning_parablock.loading.lengths import (
    FIRST_WINDOW_BATCHES,
    Epoch,
    agree_on_length,
    length_of,
    lengths_in_words,
    refuse_unsized,
)
from lightning_parablock.loading.orders import draw_locally, draws_order
from lightning_parablock.loading.positioned import LoaderStart, Position, PositionedLoader, position_of
from lightning_parablock.loading.row_accounts import show_here
from lightning_parablock.loading.shards import Cutting, cut_or_keep, rows_line
from lightning_parablock.seeds import derive_seed
from lightning_parablock.settings import Settings
from lightning_parablock.settings.secure import refuse_idle_clients, refuse_short_data

TrainingLoader = PositionedLoader | ClientsLoader


@dataclass(frozen=True)
class JoiningRules:
    """What differs where sites come and go.

    Attributes:
        settled: Returns the number of batches per epoch on which the founders have agreed, given what this site has
            worked out; collective.
        is_newcomer: Whether this site was not among the founders.
    """

    settled: Callable[[int], int]
    is_newcomer: bool


@dataclass(frozen=True)
class LoaderRules:
    """How the loaders of a run are shared among its clients.

    Attributes:
        newest: Returns the run's settings as far as they are known; a checkpoint or the clients may settle more.
        hosted: This rank and the clients that it hosts.
        n_ranks: Number of ranks.
        cuts: Whether equal data sets are cut into one shard per client.
        joining: What differs where sites come and go; None with a fixed membership.
    """

    newest: Callable[[], Settings]
    hosted: HostedClients
    n_ranks: int
    cuts: bool
    joining: JoiningRules | None = None

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank, now or later."""
        return self.n_ranks == 1 and self.joining is None

    @property
    def settings(self) -> Settings:
        """The run's settings now."""
        return self.newest()


class FitLoaders:
    """Cuts the loaders, gives them one length on all clients, and knows where the training is in each of them.

    Args:
        trainer: Whose loaders these are.
        rules: How they are shared.
        whose_turn: The turn whose batch comes next, where clients take turns.

    Attributes:
        rows_shown: One line per hosted client on how many of its rows it trains on.
        client_samples: Training samples per client, where clients take turns.
        uneven_training: Whether clients continue after others have run out of data.
        fewest_training: Batches of an epoch at the client that is the first to run out of data; 0 where one's number is
            not known, and infinity where none runs out before the others.
        uneven_evaluation: Whether clients have different or unknown numbers of batches in an evaluation.
    """

    def __init__(self, trainer: Trainer, rules: LoaderRules, whose_turn: Callable[[], TurnId]) -> None:
        self.rows_shown: list[str] = []
        self.client_samples: tuple[int, ...] = ()
        self.uneven_training = self.uneven_evaluation = False
        self.fewest_training = math.inf
        self._trainer, self._rules, self._whose_turn = trainer, rules, whose_turn
        self._passed: dict[int, Position] = {}
        self._data: list[object] = []
        self._digests: list[str] | None = None
        self._made: list[TrainingLoader] = []
        self._open_epochs: dict[ClientsLoader, ClientsEpoch] = {}

    @property
    def n_training(self) -> int:
        """Number of training loaders."""
        return len(training_loaders(self._trainer))

    def resume_at(self, positions: Mapping[int, Position]) -> None:
        """Let each training loader, by its index, begin at the position of a checkpoint."""
        self._passed = dict(positions)

    def begin_at(self, epoch: int, batch: int) -> None:
        """Let each training loader begin at a batch of an epoch, before any has been fetched.

        A loader that has a state of its own begins at its first batch.

        Args:
            epoch: From 0.
            batch: From 0.
        """
        loaders = training_loaders(self._trainer)
        position = {"epoch": epoch, "cycle": 0, "batches": batch, "stream": None}
        self._passed = {i: position for i, one in enumerate(loaders) if batch and not hasattr(one, "load_state_dict")}

    def process(self, loader: object, stage: RunningStage) -> object:
        """The loader to iterate in place of the user's; collective.

        Raises:
            DataError: a client has no batch, or equal data sets cannot be cut.
            ConfigurationError: the trainer would begin loaders again while clients that take turns are inside them.
        """
        if stage != RunningStage.TRAINING:
            return self._agree_on_length(self._cut(loader, stage), stage)
        self._forget_replaced()
        if self._rules.settings.takes_turns:
            self._made.append(made := self._take_turns(loader))
            return made
        loader = self._cut(loader, stage)
        self._account_for({self._rules.hosted.clients[0]: loader})
        self._made.append(made := PositionedLoader(self._agree_on_length(loader, stage), self._start))
        return made

    def data_digests(self) -> list[str]:
        """A digest of all training data of each hosted client, which must not leave the site; reads them once."""
        if self._digests is None:
            self._digests = data_digests(self._data)
        return self._digests

    def fixed_orders(self) -> list[bool | None]:
        """Whether the data of each hosted client come in one order, always; None where that is not known."""
        found = [draws_order(loader) for loader in self._data]
        return [None if drawn is None else not drawn for drawn in found]

    def settle_epochs(self) -> None:
        """The clients have agreed on K in the first turn of the first epoch: it gets the length that it has with it."""
        open_epochs, self._open_epochs = self._open_epochs, {}
        loaders = [loader for loader in training_loaders(self._trainer) if loader in open_epochs]
        for loader in loaders:
            epoch = open_epochs[loader]
            loader.resize(epoch.n_batches(self._batches_a_turn))
            rank_zero_info(f"parablock: train: {epoch.said(self._batches_a_turn)}")
        if loaders:
            renew_epoch_length(self._trainer)

    def skips_batch(self) -> bool:
        """Whether the client has run out of data, so that the batch that comes is not trained on; asked once a batch.

        Where clients take turns each of them goes through its data again and again.
        """
        idles = [loader.idles() for loader in training_loaders(self._trainer) if hasattr(loader, "idles")]
        return any(idles)

    def positions(self) -> list[Position | None]:
        """Where the training is in each training loader; None before the first batch."""
        ahead = batches_fetched_ahead(self._trainer)
        loaders = training_loaders(self._trainer)
        return [self._passed.get(i) or _position(loader, ahead) for i, loader in enumerate(loaders)]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _forget_replaced(self) -> None:
        """Lightning may make all loaders anew after it has kept some."""
        kept = training_loaders(self._trainer)
        if any(made is one for made in self._made for one in kept):
            self._data, self._digests, self._made = [], None, []

    def _cut(self, loader: object, stage: RunningStage) -> object:
        if not self._rules.cuts or self._rules.is_alone:
            return loader
        hosted = self._rules.hosted
        is_newcomer = self._rules.joining is not None and self._rules.joining.is_newcomer
        cutting = Cutting(hosted.rank, self._rules.settings.seed, hosted.gather, not is_newcomer, hosted.local_seed)
        loader, what = cut_or_keep(loader, stage, cutting)
        if stage != RunningStage.SANITY_CHECKING:
            rank_zero_info(f"parablock: {stage.value}: {what}")
        return loader

    def _take_turns(self, loader: object) -> ClientsLoader:
        """Batches of whichever client of this rank has its turn; collective."""
        refuse_reloading(self._trainer)
        hosted, settings = self._rules.hosted, self._rules.settings
        made = own_loaders(self._trainer, hosted) or shared_loaders(loader, hosted, cuts=self._rules.cuts)
        epoch, steps = agree_on_epoch(made, hosted, settings), self._batches_a_turn
        is_open = "local_steps" in settings.pending
        self.client_samples = epoch.samples
        self._account_for(made)
        rank_zero_info(f"parablock: train: {epoch.said(None if is_open else steps)}")
        made_of_turns = ClientsLoader(streams_of(made, hosted), epoch.n_batches(steps), self._whose_turn, self._start)
        if is_open:
            self._open_epochs[made_of_turns] = epoch
        return made_of_turns

    @property
    def _batches_a_turn(self) -> int:
        batches_a_step: int = self._trainer.accumulate_grad_batches
        return self._rules.settings.local_steps * batches_a_step

    def _account_for(self, loaders: Mapping[int, object]) -> None:
        """Show on this rank, before it trains, how many of their rows its clients train on."""
        self._data += loaders.values()
        for client, loader in loaders.items():
            draw_locally(loader, self._rules.hosted.local_seed)
            line = rows_line(self._rules.hosted.names.label(client), loader)
            if line is not None and line not in self.rows_shown:
                self.rows_shown.append(line)
                show_here(f"parablock: train: {line}")

    def _agree_on_length(self, loader: object, stage: RunningStage) -> object:
        """Clients with different numbers of batches make epochs of one length, so that all make the same rounds."""
        if self._rules.is_alone:
            return loader
        settings, hosted, joining = self._rules.settings, self._rules.hosted, self._rules.joining
        if joining is not None:  # sites that come later may have other lengths
            self.uneven_training = self.uneven_evaluation = True
            refuse_unsized(loader, stage.value)
        goes_on = settings.uneven_clients == "go_on"
        window = FIRST_WINDOW_BATCHES if "local_steps" in settings.pending else settings.local_steps
        ranks = ClientNames(hosted.names.sites)  # loaders are counted by rank here
        settled = None if joining is None else joining.settled
        epoch = Epoch(stage.value, window, hosted.gather, goes_on, ranks, settled)
        own = length_of(loader)
        loader, lengths = agree_on_length(loader, epoch)
        uneven = None in lengths or len(set(lengths)) > 1
        if stage != RunningStage.TRAINING:
            self.uneven_evaluation = self.uneven_evaluation or uneven
        elif uneven:
            if goes_on:
                refuse_idle_clients(settings.aggregation, lengths_in_words(lengths, ranks))
            rank_zero_info(
                f"parablock: the clients have {lengths_in_words(lengths, ranks)} batches per epoch; "
                + (
                    "a client that has used up its data is idle while the others continue"
                    if goes_on
                    else "every client trains on as many as the shortest one has"
                )
            )
            self.uneven_training = self.uneven_training or goes_on
            if goes_on or None in lengths:
                self.fewest_training = min(self.fewest_training, *(length or 0 for length in lengths))
        if joining is not None and stage == RunningStage.TRAINING and own is not None:
            refuse_short_data(settings.aggregation, ranks.label(hosted.rank), own, length_of(loader) or 0)
        return loader

    def _start(self, loader: TrainingLoader) -> LoaderStart:
        """Where an iteration over a loader begins; asked when its first batch is wanted."""
        index = next(i for i, other in enumerate(training_loaders(self._trainer)) if other is loader)
        of_site = self._rules.hosted.local_seed.of(self._rules.settings.seed)
        seed = derive_seed(of_site, "loader", self._rules.hosted.clients[0], index)
        epoch: Any = self._trainer.fit_loop.epoch_progress.current
        return LoaderStart(seed, epoch.processed, self._passed.pop(index, None))


def _position(loader: Any, ahead: int) -> Position | None:
    return loader.position(ahead) if isinstance(loader, ClientsLoader) else position_of(loader, ahead)
