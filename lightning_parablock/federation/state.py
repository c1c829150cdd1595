"""What a rank knows of the rounds under way: facts that the verbs of ``rounds.py`` change and others read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.errors import CallOrderError
from lightning_parablock.federation.client import Client
from lightning_parablock.federation.contributions import Contributions
from lightning_parablock.federation.flights import Flight, TurnFacts
from lightning_parablock.federation.held import HeldModel
from lightning_parablock.federation.schedule import Schedule, Work
from lightning_parablock.records import RoundRecord
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Transport

MAX_RECORDS = 100_000


class RoundState:
    """The rounds of the clients of one rank on one model.

    Args:
        flat: The model's blocks, holding the common starting value W.
        settings: The run's settings.
        clients: Ids of the clients this rank hosts, ascending.
        transport: Carries the exchanges.
        schedule: Who trains which block in which round.
        n_turns: Turns per round, the same number on all ranks: those for which this rank has no client are idle. None
            for as many as it has clients in the cohort.

    Attributes:
        round: Number of the round that is running or comes next.
        block: Index of the block of the running turn, or of the last one.
        turns: The clients of the running round in the order of their turns; None is an idle turn.
        turn: Index in ``turns`` of the turn that is running or comes next.
        steps: Local steps taken in the running turn.
        discarded: Whether the turn that ended last has no part in the mean because its delta was not finite.
        records: The records of finished rounds, oldest first, bounded.
        is_running: Whether rounds are under way: the model may then show something other than W.
        work: The running round's blocks with their clients, on all ranks.
        uploads: Uploads from the turns of the running round that have ended, by client.
        turn_facts: What the clients did in the turns of the running round that have begun, by client.
        flights: Rounds that are submitted and not merged by all clients, by round.
        norms: The newest merged gradient norm of each block that has one.
        clock: Stands for what all clients have merged: its versions are W.
        active: The client whose turn it is; None between turns and in idle ones.
        loaded: The client whose held values the model shows.
        model: Shows and stores the clients' values.
        contributions: Makes uploads of deltas.
    """

    def __init__(
        self,
        flat: FlatBlocks,
        settings: Settings,
        clients: Sequence[int],
        transport: Transport,
        schedule: Schedule,
        n_turns: int | None = None,
    ) -> None:
        self.flat, self.settings, self.transport, self.schedule = flat, settings, transport, schedule
        self.n_turns = n_turns
        versions = [0] * len(flat.blocks)
        self.clients = {i: Client(i, versions) for i in clients}
        self.clock = Client(-1, versions)
        self.active: Client | None = None
        self.loaded: Client = next(iter(self.clients.values()))
        self.round = self.turn = self.steps = self.block = 0
        self.turns: list[int | None] = []
        self.turn_is_open = self.discarded = self.is_running = False
        self.work: Work = {}
        self.uploads: dict[int, Upload] = {}
        self.turn_facts: dict[int, TurnFacts] = {}
        self.flights: dict[int, Flight] = {}
        self.norms: dict[int, float] = {}
        self.records: list[RoundRecord] = []
        self.model = HeldModel(flat, settings.in_flight_value)
        self.contributions = Contributions(settings)

    @property
    def has_open_turn(self) -> bool:
        """Whether a turn is under way, including an idle one."""
        return self.turn_is_open

    @property
    def active_client(self) -> int | None:
        """Id of the client whose turn it is; None between turns and in idle ones."""
        return self.active.id if self.active is not None else None

    @property
    def start(self) -> Tensor:
        """s of the active client: the value of its block from which its delta is measured, shape (numel,).

        Raises:
            CallOrderError: no client is training.
        """
        if self.active is None or self.active.start is None:
            raise CallOrderError("no client is training: begin_turn has not been called for one")
        return self.active.start

    @property
    def wants_gradient_norm(self) -> bool:
        """Whether the running step may be the first on which the active client trains in this round."""
        return self.schedule.order == "importance" and self.active is not None and not self.active.samples

    @property
    def at_round_start(self) -> bool:
        """Whether no local step of the round has been taken yet."""
        return self.turn == 0 and self.steps == 0

    @property
    def turn_is_over(self) -> bool:
        """Whether all local steps of the turn have been taken."""
        return self.steps >= self.settings.local_steps

    @property
    def round_is_over(self) -> bool:
        """Whether all turns of the round have ended."""
        return self.turn >= len(self.turns)

    @property
    def hosted_cohort(self) -> list[int]:
        """The clients of this rank that train in the running round, in the order of their turns."""
        return [client for client in self.turns if client is not None]

    @property
    def delay_rest_steps(self) -> int:
        """r of delay_steps = qK + r."""
        return self.settings.delay.rest_steps

    @property
    def due_in_turn(self) -> int:
        """The round whose commits are merged inside the turns of the running one, where r > 0."""
        return self.settings.delay.due_in_turns_of(self.round)

    def block_of(self, client_id: int) -> int:
        """The block that a client of the running round's cohort trains."""
        return next(block for block, cohort in self.work.items() if client_id in cohort)

    # --- W beside the trajectory --------------------------------------------------------------------------------------

    def show_committed(self) -> dict[int, Tensor]:
        """Make the model show W, from merged commits only; the result goes to :meth:`undo_show_committed`."""
        return self.model.show_committed(self.clock)

    def undo_show_committed(self, replaced: dict[int, Tensor]) -> None:
        """Put the trained values back, bit for bit."""
        self.model.undo(replaced)

    def settle(self, settings: Settings, transport: Transport) -> None:
        """In round 0, before anything is submitted: take over the settings on which the clients have agreed.

        Args:
            settings: The settings.
            transport: Has their codec, and W.
        """
        self.settings, self.transport, self.contributions = settings, transport, Contributions(settings)

    def begin_at(self, round_index: int) -> None:
        """Continue a fresh engine with this round as the next one."""
        self.round = round_index
