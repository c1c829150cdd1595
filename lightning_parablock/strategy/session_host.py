"""The strategy as the keeper of the session of a fit: opened when rounds start, readable until the next fit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lightning_parablock.blocks.partition import Block
from lightning_parablock.checkpointing.elastic_checkpoints import ElasticEntry, with_entry
from lightning_parablock.checkpointing.resumed import Resumed
from lightning_parablock.elastic.view import Admission, HeldCheckpoint
from lightning_parablock.errors import PeerError
from lightning_parablock.launching.checkpoint_choice import Choice, noted_choice, path_alone
from lightning_parablock.lightning_private.round_start import set_up_validation
from lightning_parablock.loading.fit_loaders import FitLoaders
from lightning_parablock.records import RoundRecord
from lightning_parablock.settings import SecureAggregation, Settings
from lightning_parablock.strategy.elastic_files import journal_folder, keep_checkpoints_apart, notes_folder
from lightning_parablock.strategy.elastic_ranks import ElasticRanks
from lightning_parablock.strategy.elastic_resume import HeldFile, ShareOfCheckpoint, held_checkpoint
from lightning_parablock.strategy.fit import FitSession
from lightning_parablock.strategy.fit_opening import FitParts, open_session
from lightning_parablock.strategy.fit_setup import FitBlocks
from lightning_parablock.strategy.own_figures import OwnFigures
from lightning_parablock.strategy.round_start import saved_apart
from lightning_parablock.strategy.secure import SecureFit, open_secure, require_member
from lightning_parablock.strategy.secure_elastic import ElasticSums, open_elastic_sums
from lightning_parablock.strategy.secure_refusals import refuse_insecure_sums
from lightning_parablock.strategy.sync_guard import SyncGuard, located

T = TypeVar("T")


class SessionHost(ElasticRanks):
    """Ranks that run fits, one after the other.

    Args:
        settings: The settings as the user gave them.
        **ranks: The other arguments of :class:`~lightning_parablock.strategy.elastic_ranks.ElasticRanks`.

    Attributes:
        rows_shown: One line per client of this rank on how many of its rows the run trains on.
        early_signals: The newest signal that came while a fit was being set up; empty without one.
        notes_folder: Where a site of an elastic run notes the run that it takes part in; None for the trainer's folder.
    """

    def __init__(self, settings: Settings, **ranks: Any) -> None:
        super().__init__(settings, **ranks)
        self.rows_shown: list[str] = []
        self.early_signals: list[int] = []
        self.notes_folder: Path | None = None
        self._sync = SyncGuard()
        self._figures = OwnFigures(settings.aggregation)
        self._cleanup = ExitStack()
        # Lightning makes a strategy before any fit, and reads it after one: only these come and go with fits.
        self._blocks: FitBlocks | None = None
        self._session: FitSession | None = None
        self._resumed: Resumed | None = None
        self._secure: SecureFit | ElasticSums | None = None
        # The same for a run whose sites come and go, while its founders agree on a checkpoint.
        self._held: HeldFile | None = None
        self._shared: ShareOfCheckpoint | None = None
        self._continued: ElasticEntry | None = None

    _trainer: pl.Trainer  # since connect(), the first of all hooks
    _loaders: FitLoaders  # since setup_environment(): modules may ask for the length of an epoch while they are set up

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[Block]:
        """The blocks in order; empty before set-up."""
        return self._blocks.flat.blocks if self._blocks is not None else []

    @property
    def round_records(self) -> list[RoundRecord]:
        """One record per finished round of this rank's client, oldest first; bounded."""
        return self._session.engine.records if self._session is not None else []

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 over the trained blocks after the last fit, the same on every rank; None before its end."""
        return self._session.weights_sha256 if self._session is not None else None

    @property
    def is_resuming(self) -> bool:
        """Whether a checkpoint has been loaded from which no rounds have started yet."""
        return self._resumed is not None

    @property
    def last_session(self) -> FitSession | None:
        """The session of the fit that runs, or of the last one; None before its rounds start."""
        return self._session

    @property
    def session(self) -> FitSession:
        """The same, where rounds must have started."""
        assert self._session is not None, "no rounds are under way"
        return self._session

    @property
    def _running(self) -> FitSession | None:
        """The session while its rounds run: then the model may show something else than W."""
        return self._session if self._session is not None and self._session.engine.is_running else None

    @property
    @override
    def _takes_part(self) -> bool:
        return self._is_fit

    @property
    @override
    def _site_folder(self) -> Path | None:
        return notes_folder(self._trainer, self.notes_folder)

    @property
    def _is_fit(self) -> bool:
        return self._trainer.state.fn == TrainerFn.FITTING

    @property
    def _sums_are_secure(self) -> bool:
        return self._is_fit and isinstance(self.settings.aggregation, SecureAggregation)

    @property
    def _keeps_buffers(self) -> bool:
        """Whether what a fit has made of the buffers stays at each site: it follows from the site's rows."""
        return self._session is not None and isinstance(self.settings.aggregation, SecureAggregation)

    @property
    @override
    def completed(self) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        entry = None if self.elastic is None else self.elastic.entry_of(self.settings, self.blocks)
        return None if entry is None else lambda dumped: with_entry(dumped, entry)

    # --- checkpoints of an elastic run --------------------------------------------------------------------------------

    @override
    def _held_checkpoint(self) -> HeldCheckpoint | None:
        noted = noted_choice(self._trainer)
        self._held = held_checkpoint(self.checkpoint_io, noted.path, noted.weights_only)
        if self._held is None:
            return None
        entry = self._held.entry
        return HeldCheckpoint(entry.round, entry.log, entry.lineage)

    def choose_checkpoint(self, found: Choice) -> str | None:
        """What this site loads: founders the newest checkpoint that any of them has, guests none. Collective.

        Evaluations, in which each site is alone, load their own.

        Args:
            found: What the user named, or Lightning's search has found, here.
        """
        if self.elastic is None:
            return path_alone(found)
        settings = self.settings.fingerprint()
        self._shared = ShareOfCheckpoint.agreed(self, self.elastic, found, self._held, settings)
        lineage = () if self._shared is None else self._shared.lineage
        # Guests save checkpoints of this run, too, and get to know its ancestors from a founder.
        self.elastic.site.ancestors = self.elastic.group.broadcast(lineage, 0)
        if self._shared is None:
            self._held = None
            return None
        return found.path if self._held is not None else f"the checkpoint of {self.describe(self._shared.source_rank)}"

    def load_elastic(self) -> dict[str, Any]:
        """The checkpoint from which the founders continue; collective among them."""
        assert self.elastic is not None and self._shared is not None
        tells_own = not isinstance(self.settings.aggregation, SecureAggregation)
        checkpoint, self._continued = self._shared.load(self.elastic, self._held, tells_own=tells_own)
        self._held = self._shared = None
        if "callbacks" in checkpoint:
            is_own = self._continued.site == self.elastic.name_of(self.elastic.client)
            checkpoint["callbacks"] = saved_apart(self._trainer, checkpoint["callbacks"], is_own=is_own)
        self.elastic.beginning = Admission(self._continued.round, self._continued.trainer_state, is_founding=True)
        return checkpoint

    # --- the life of a session ----------------------------------------------------------------------------------------

    def state_trust(self) -> None:
        """Where sums are secure: agree on masks with all sites, before anything is drawn; collective."""
        self._secure, self.local_seed.salt = None, b""
        if not self._sums_are_secure:
            return
        refuse_insecure_sums(self.settings, self.hosting.by_rank, len(self.blocks))
        member = require_member(self._member, self.process_group_backend)
        if self.elastic is None:
            self._secure = open_secure(self, self._trainer, self.settings, member, self._resumed)
        else:
            self._secure = open_elastic_sums(self, self.settings, member, self._module())
        self.local_seed.salt = self._secure.salt

    def start_rounds(self) -> None:
        """Open the session of the fit and begin its first round; collective."""
        assert self._blocks is not None
        resumed, self._resumed = self._resumed, None
        if self.elastic is not None:
            set_up_validation(self._trainer)
        if self._continued is not None:
            self._continued.refuse_other_blocks(self.blocks)
            self._continued = None
        parts = FitParts(self, self._trainer, self._module(), self._blocks.flat, self._loaders, resumed, self._secure)
        self._session = open_session(parts)
        self._cleanup.callback(self._session.close)
        self._session.begin(self.early_signals)

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        if self.elastic is not None:
            name = self.elastic.name_of(self.elastic.client)
            self._cleanup.callback(keep_checkpoints_apart(self._trainer, name, self.alone))
            if (folder := journal_folder(self._trainer, name)) is not None:
                self.elastic.site.journal.keep_in(folder)

    @override
    def guard(self, what: str, collective: Callable[[], T], detail: str = "") -> T:
        self._sync.check(what)
        try:
            return super().guard(what, collective, detail)
        except PeerError as error:
            raise located(error, self._trainer.state.fn, self._session) from error

    @override
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        return tensor if self._figures.keep() else super().reduce(tensor, group, reduce_op)

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        with self._figures.vote():
            return super().reduce_boolean_decision(decision, all)

    @override
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        self._figures.refuse_to_gather()
        return super().all_gather(tensor, group, sync_grads)

    def rescue(self, exception: BaseException) -> None:
        """Take note that the run fails, and leave the last committed model on the disk; never waits for peers."""
        first_is_lost = self.has_lost(0)
        self.on_exception(exception)  # before anything is saved: the others wait for this rank until they know
        self.early_signals.clear()
        if self._session is not None and not self.is_dropped:
            self._session.rescue(exception, first_is_lost=first_is_lost)

    @override
    def teardown(self) -> None:
        self._cleanup.close()
        self._resumed = self._held = self._shared = self._continued = None
        self.early_signals.clear()
        super().teardown()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _module(self) -> pl.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module
