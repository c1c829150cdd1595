"""The state machine of one rank and its clients: the only place where effects are ordered.

Time is the common clock of optimizer steps. Round t takes steps tK+1 to (t+1)K; its exchange is due ``delay_steps``
after its last step and is merged exactly then, never on arrival, so the network's speed changes no weight. With
delay_steps = qK + r that is after step r of round t+1+q, or at the join of round t+q if r = 0 (docs/method.md).

A rank trains those of its clients that are in the round's cohort one after the other. A round on one rank::

    for client in engine.begin_round():
        engine.begin_turn(client)
        for _ in range(local_steps):
            ...                        # one optimizer step on engine.block; none where client is None
            engine.after_step()
        engine.end_turn()
    engine.end_round()

Each client merges inside its own turn what is due there; in a round's last turn so does everybody who sits out, on all
ranks after the same number of steps: W is what they have all merged.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks, is_finite
from lightning_parablock.codecs.feedback import Residuals
from lightning_parablock.errors import NonFiniteError
from lightning_parablock.federation.client import Client, InFlight
from lightning_parablock.federation.drift import lr_of_mean, relative_drift
from lightning_parablock.federation.flights import Flight, Turn
from lightning_parablock.federation.held import HeldModel
from lightning_parablock.federation.schedule import Schedule, Work
from lightning_parablock.records import RoundRecord
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Transport, Upload

log = logging.getLogger(__name__)

MAX_RECORDS = 100_000


class RoundEngine:
    """Runs the rounds of the clients of one rank on one model.

    Args:
        flat: The model's blocks, holding the common starting value W.
        settings: The run's settings.
        clients: Ids of the clients this rank hosts, ascending.
        transport: Carries the exchanges.
        schedule: Who trains which block in which round.
        n_turns: Turns of a round, the same number on all ranks: those for which this rank has no client pass idle. None
            for as many as it has clients in the cohort.

    Attributes:
        round: Number of the round that runs or comes next.
        block: Index of the block of the turn that runs, or of the last one.
        turns: The clients of the running round in the order of their turns; None is an idle turn.
        turn: Index in it of the turn that runs or comes next.
        steps: Local steps of the turn that runs.
        discarded: Whether the turn that ended last has no part in the mean because its delta was not finite.
        records: The records of finished rounds, oldest first, bounded.
        is_running: Whether rounds are under way: then the model may show something else than W.
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
        self.settings = settings
        self.transport = transport
        self.flat = flat
        self.schedule = schedule
        versions = [0] * len(flat.blocks)
        self.clients = {i: Client(i, versions) for i in clients}
        self.round = self.turn = self.steps = self.block = 0
        self.turns: list[int | None] = []
        self.discarded = False
        self.records: list[RoundRecord] = []
        self.is_running = False
        self._n_turns = n_turns
        self._clock = Client(-1, versions)
        self._work: Work = {}
        self._turn_is_open = False
        self._active: Client | None = None
        self._loaded: Client = next(iter(self.clients.values()))
        # A list and not a method: through a method engine, model and process group would outlive their last user.
        self._current = [self._clock, self._loaded]
        self.model = HeldModel(flat, self._current, settings.in_flight_value)
        self._residuals = Residuals()
        self._uploads: dict[int, Upload] = {}
        self._turns: dict[int, Turn] = {}
        self._flights: dict[int, Flight] = {}
        self._norms: dict[int, float] = {}

    @property
    def has_open_turn(self) -> bool:
        """Whether a turn is under way, be it an idle one."""
        return self._turn_is_open

    @property
    def active_client(self) -> int | None:
        """The client whose turn it is."""
        return self._active.id if self._active is not None else None

    @property
    def wants_gradient_norm(self) -> bool:
        """Whether the step that runs may be the first on which the active client trains in this round."""
        return self.schedule.order == "importance" and self._active is not None and not self._active.samples

    @property
    def start(self) -> Tensor:
        """s of the active client: the value of its block from which its delta is measured, shape (numel,)."""
        assert self._active is not None and self._active.start is not None, "no client is training"
        return self._active.start

    # --- the verbs of a round, in order -------------------------------------------------------------------------------

    def begin_round(self, work: Work | None = None) -> list[int | None]:
        """Look up who trains what in the round, where it has not been looked up before; returns :attr:`turns`."""
        self._work = self.schedule.work_of(self.round, self._norms) if work is None else work
        cohort = {client for clients in self._work.values() for client in clients}
        hosted = [client for client in self.clients if client in cohort]
        self.turns = [*hosted, *[None] * ((self._n_turns or len(hosted)) - len(hosted))]
        self.turn = self.steps = 0
        self._current[:] = [self._clock, self._loaded, *(self.clients[client] for client in hosted)]
        return self.turns

    def begin_turn(self, client_id: int | None) -> None:
        """Load the client's values into the model and take s; afterwards the optimizer may change the block."""
        self.is_running = self._turn_is_open = True
        self.steps = 0
        if client_id is None:
            return
        client = self._loaded = self._active = self.clients[client_id]
        self.block = self._block_of(client_id)
        self._turns[client_id] = Turn(time.time(), self.block)
        self.model.show_all(client)
        client.start = self.model.begin_training(client, self.block)
        self.flat.open_master(self.block)
        client.samples, client.gradient_norm = 0, 0.0

    def after_step(self, samples: int = 1, gradient_norm: float | None = None) -> None:
        """Advance the clock by one optimizer step; merge the commits that are due inside the round, if some are.

        Args:
            samples: On how many the step trained: 0 where the client has nothing left and lets the step pass by.
            gradient_norm: Of the block, where the block order asks for it; the first one of a turn counts.
        """
        assert self._turn_is_open, "no turn is open: call begin_turn first"
        self.steps += 1
        self.transport.note_step(self.round)
        self.transport.check(self.round, self.block)
        client = self._active
        if client is not None:
            if gradient_norm is not None and samples and not client.samples:
                client.gradient_norm = gradient_norm
            client.samples += samples
        if self.steps == self._delay_rest_steps:
            self._merge_in_turn(client)

    @property
    def at_round_start(self) -> bool:
        """Whether no local step of the round has been made yet."""
        return self.turn == 0 and self.steps == 0

    @property
    def turn_is_over(self) -> bool:
        """Whether all local steps of the turn have been made."""
        return self.steps >= self.settings.local_steps

    @property
    def round_is_over(self) -> bool:
        """Whether all turns of the round have been ended."""
        return self.turn >= len(self.turns)

    def end_turn(self) -> None:
        """Measure the active client's delta from s; afterwards the optimizer must not touch the block.

        Raises:
            NonFiniteError: the delta contains NaN or infinity, and ``nonfinite_delta`` is "stop".
        """
        assert self._turn_is_open, "no turn is open: call begin_turn first"
        client, self._active, self._turn_is_open = self._active, None, False
        self.turn += 1
        self.discarded = False
        if client is None:
            return
        assert client.start is not None
        delta = self.flat.difference(self.block, client.start) if client.samples else None
        if delta is not None and not is_finite(delta):
            self._discard(client)
            delta = None
        if delta is not None:
            weight = client.samples if self.settings.weighting == "samples" else 1
            self._uploads[client.id] = Upload(delta, weight, gradient_norm=client.gradient_norm)
        else:  # it has no part in the mean, which is that of the others
            self._uploads[client.id] = Upload(torch.zeros_like(client.start), weight=0)
        self.flat.close_master()
        turn = self._turns[client.id]
        turn.end_s, turn.steps, turn.samples = time.time(), self.steps, client.samples
        turn.nonfinite = self.discarded
        client.start = None

    def end_round(self) -> None:
        """Join: merge what is due, submit the deltas; at delay 0 wait for their commits."""
        if not self._delay_rest_steps and self._delay_rounds:
            self._merge(self.round - self._delay_rounds)
        elif self._delay_rest_steps and not self.turns:  # no turn of this rank could do so
            self._merge(self._due_in_turn)
        self._give_absent_ones_no_weight()
        self._submit()
        if not self.settings.delay_steps:
            self._merge(self.round)
        self.round += 1
        self.turns, self.turn, self.steps = [], 0, 0

    def finish(self) -> None:
        """End the run: submit a short last round as it is, then commit everything in flight in round order.

        Afterwards the model shows W, the same on every rank.
        """
        has_begun = not self.at_round_start
        self.transport.announce_end(self.round + has_begun)
        if has_begun:
            if self._turn_is_open:
                self.end_turn()
            self.end_round()
        elif self._turn_is_open:
            self._abandon_turn()
        for round_index in sorted(self._flights):
            self._merge(round_index)
        self.model.show_all(self._loaded)
        self.is_running = False

    # --- W beside the trajectory --------------------------------------------------------------------------------------

    def show_committed(self) -> dict[int, Tensor]:
        """Make the model show W, from merged commits only; the result goes to :meth:`undo_show_committed`."""
        return self.model.show_committed(self._clock)

    def undo_show_committed(self, replaced: dict[int, Tensor]) -> None:
        """Put the trained values back, bit for bit."""
        self.model.undo(replaced)

    # --- stop and go on -----------------------------------------------------------------------------------------------

    def state(self, replaced: Mapping[int, Tensor] | None = None) -> dict[str, Any]:
        """What this rank must know to go on from here, beside W and the random states: tensors and plain values.

        Args:
            replaced: What :meth:`show_committed` returned, if the model shows W at the moment.
        """
        active, values = self._active, None
        if active is not None:  # while it trains, the block always shows something else than W
            values = replaced[self.block] if replaced is not None else self.flat.pack(self.block)
        flights, now_s = self._flights, time.time()
        return {
            "round": self.round,
            "running": [[block, list(cohort)] for block, cohort in self._work.items()],
            "block": self.block,
            "turn": self.turn,
            "steps": self.steps,
            "is_open": self._turn_is_open,
            "active": None
            if active is None
            else {"samples": active.samples, "gradient_norm": active.gradient_norm, "values": values},
            "uploads": [[client, *_plain(upload)] for client, upload in self._uploads.items()],
            "work": [
                [t, block, list(cohort)] for t, flight in flights.items() for block, cohort in flight.work.items()
            ],
            "in_flight": [
                [t, client, *_plain(upload)]
                for t, flight in flights.items()
                for client, upload in flight.uploads.items()
            ],
            "turns": [
                [t, client, {**asdict(turn), "start_s": turn.start_s - now_s, "end_s": turn.end_s - now_s}]
                for t, turns in [*((t, flight.turns) for t, flight in flights.items()), (self.round, self._turns)]
                for client, turn in turns.items()
            ],
            "norms": [[block, norm] for block, norm in self._norms.items()],
            "residuals": self._residuals.state(),
            "server": [dict(vars(piece)) for piece in self.transport.server.state()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`, on a fresh engine whose model shows W; submits again what was in flight.

        Afterwards the turn that was open is open again, if one was. All ranks must do so at the same point.
        """
        self.transport.server.load_state(StatePiece(**piece) for piece in state["server"])
        self._residuals.load_state(state["residuals"])
        turns, now_s = dict[int, dict[int, Turn]](), time.time()
        for t, client, turn in state["turns"]:
            shifted = {**turn, "start_s": turn["start_s"] + now_s, "end_s": turn["end_s"] + now_s}
            turns.setdefault(t, {})[client] = Turn(**shifted)
        work = dict[int, Work]()
        for t, block, cohort in state["work"]:
            work.setdefault(t, {})[block] = tuple(cohort)
        for t in sorted(work):
            self.round, self._work, self._turns = t, work[t], turns[t]
            self._uploads = self._uploads_of(row[1:] for row in state["in_flight"] if row[0] == t)
            self._submit()
        self.model.show_all(self._loaded)
        self._norms = {block: norm for block, norm in state["norms"]}
        self.round = state["round"]
        if state["turn"] or state["is_open"]:
            self._reopen_round(state, turns.get(self.round, {}))

    def begin_at(self, round_index: int) -> None:
        """Begin a fresh engine with this round, nothing being in flight."""
        self.round = round_index

    def _reopen_round(self, state: Mapping[str, Any], turns: dict[int, Turn]) -> None:
        # As it was looked up: gradient norms that have been merged inside the round would draw another block now.
        self.begin_round({block: tuple(cohort) for block, cohort in state["running"]})
        self.turn = state["turn"]
        self._uploads = self._uploads_of(state["uploads"])
        if state["is_open"]:
            client_id = self.turns[self.turn]
            if client_id is not None and state["steps"] >= self._delay_rest_steps > 0:
                self._take_in(self.clients[client_id], self._due_in_turn)
            self.begin_turn(client_id)  # s is the held value, also where a commit has moved it since
            self.steps, self.block = state["steps"], state["block"]
            if client_id is not None:
                active = state["active"]
                self.flat.unpack(self.block, active["values"])
                self.clients[client_id].samples = active["samples"]
                self.clients[client_id].gradient_norm = active["gradient_norm"]
        self._turns = turns

    def _uploads_of(self, rows: Iterable[Sequence[Any]]) -> dict[int, Upload]:
        return {
            client: Upload(delta.to(self.flat.device), weight, gradient_norm=norm)
            for client, delta, weight, norm in rows
        }

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _delay_rounds(self) -> int:
        return self.settings.delay_rounds_and_steps[0]

    @property
    def _delay_rest_steps(self) -> int:
        return self.settings.delay_rounds_and_steps[1]

    @property
    def _due_in_turn(self) -> int:
        """The round whose commits are merged inside the turns of the running one."""
        return self.round - 1 - self._delay_rounds

    @property
    def _hosted(self) -> list[int]:
        return [client for client in self.turns if client is not None]

    def _block_of(self, client_id: int) -> int:
        return next(block for block, cohort in self._work.items() if client_id in cohort)

    def _abandon_turn(self) -> None:
        client, self._active, self._turn_is_open = self._active, None, False
        if client is not None:
            client.start = None
            self.flat.close_master()
            del self._turns[client.id]

    def _discard(self, client: Client) -> None:
        """A delta that is not finite never enters a mean: stop, or go on as if the client had not trained."""
        who, name = self.transport.describe_client(client.id), self.flat.blocks[self.block].name
        what = f"round {self.round}, block {name!r}: the delta of {who} contains NaN or infinity"
        if self.settings.nonfinite_delta == "stop":
            raise NonFiniteError(
                f"{what}; look for a loss that is not finite in its data, lower the learning rate or set "
                "gradient_clip_val, or leave such a client out of the round with nonfinite_delta='skip'"
            )
        log.warning("parablock: %s: it has no weight in this round and is put back to where the round began", what)
        self.discarded = True
        client.samples = 0

    def _give_absent_ones_no_weight(self) -> None:
        """Where the run ends in the middle of a round, some have not had their turn; and a rank may have no client."""
        now_s = time.time()
        for client in self._hosted:
            if client not in self._uploads:
                block = self._block_of(client)
                self._uploads[client] = Upload(torch.zeros_like(self.flat.pack(block)), weight=0)
                self._turns[client] = Turn(now_s, block, end_s=now_s)
        if not self._turns:
            self._turns[min(self.clients)] = Turn(now_s, min(self._work), end_s=now_s)

    def _submit(self) -> None:
        uploads = {client: self._with_residual(client, upload) for client, upload in self._uploads.items()}
        flight = self._flights[self.round] = Flight(self._work, uploads, self._turns)
        self._uploads, self._turns = {}, {}
        for block, cohort in flight.work.items():
            own = {client: uploads[client] for client in cohort if client in uploads}
            flight.exchanges[block] = self.transport.submit(self.round, block, own, cohort)
            for client, upload in own.items():
                if upload.weight:
                    self.clients[client].in_flight.append(InFlight(self.round, block, upload.delta))
        self.model.show(self._loaded, self.block)

    def _with_residual(self, client_id: int, upload: Upload) -> Upload:
        """With a lossy codec: the upload with what was left out before; who did not train keeps that for later."""
        if not self.settings.compression.is_lossy or upload.weight == 0:
            return upload
        numel = upload.delta.numel()
        return replace(upload, residual=self._residuals.begin(self.round, client_id, self._block_of(client_id), numel))

    def _merge_in_turn(self, client: Client | None) -> None:
        """Inside a turn: take the commits that are due into its client; the last turn of a round does so for all."""
        flight, is_last = self._flights.get(self._due_in_turn), self.turn == len(self.turns) - 1
        if flight is None:
            return
        if client is None:
            if is_last:
                self._merge(self._due_in_turn)
            return
        self._take_in(client, self._due_in_turn)
        if is_last:
            self._advance_clock(self._due_in_turn, flight)
        for block in flight.work:
            if block == self.block:
                self._shift_active(client)
            else:
                self.model.show(client, block)

    def _merge(self, round_index: int) -> None:
        """Between turns: take the commits of a round into every client."""
        flight = self._flights.get(round_index)
        if flight is None:  # the clock has not reached the first exchange yet
            return
        self._land(round_index, flight)
        self._advance_clock(round_index, flight)
        for block in flight.work:
            self.model.show(self._loaded, block)

    def _take_in(self, client: Client, round_index: int) -> None:
        flight = self._flights.get(round_index)
        if flight is not None:
            self._land(round_index, flight)
            client.merge(round_index, self._versions_after(flight))

    def _land(self, round_index: int, flight: Flight) -> None:
        """Take the commits from their exchanges, once: each becomes the newest version of its block."""
        if flight.has_landed:
            return
        for block, exchange in flight.exchanges.items():
            from_s = time.time()
            commit = exchange.wait()
            flight.waits_s.append((from_s, time.time()))
            self._note_drift(round_index, flight, block, commit)
            if self.settings.compression.is_lossy:
                commit.add_(self.model.committed(self._clock, block))
            self._refuse_overflow(round_index, block, commit)
            self.model.add_version(block, self._clock.versions[block] + 1, commit)
        flight.has_landed = True
        if self._active is not None:
            self._turns[self._active.id].stood_still_s += flight.wait_peer_s + flight.exposed_s

    def _refuse_overflow(self, round_index: int, block: int, commit: Tensor) -> None:
        """Every rank has the same bits here, so all of them stop, with the W before this commit."""
        if is_finite(self.flat.as_held(block, commit)):
            return
        raise NonFiniteError(
            f"round {round_index}, block {self.flat.blocks[block].name!r}: the committed value contains NaN or "
            "infinity although every delta in it was finite: their sum, the server optimizer or the compression has "
            "overflowed; lower the learning rate of the clients or of server_optimizer, or set gradient_clip_val"
        )

    def _advance_clock(self, round_index: int, flight: Flight) -> None:
        """Everybody has merged a round: W is what they have, and what was before it is of no more use."""
        versions = self._versions_after(flight)
        for client in (self._clock, *self.clients.values()):
            client.merge(round_index, versions)
        names = [block.name for block in self.flat.blocks]
        self.records += [flight.record_of(round_index, client, names) for client in sorted(flight.turns)]
        if len(self.records) > MAX_RECORDS:
            del self.records[: MAX_RECORDS // 2]
        norms = {block: exchange.facts.gradient_norm for block, exchange in flight.exchanges.items()}
        self._norms |= {block: norm for block, norm in norms.items() if math.isfinite(norm)}
        del self._flights[round_index]
        self.transport.server.settle(round_index)
        self._residuals.settle(round_index)

    def _versions_after(self, flight: Flight) -> list[int]:
        return [version + (block in flight.work) for block, version in enumerate(self._clock.versions)]

    def _note_drift(self, round_index: int, flight: Flight, block: int, commit: Tensor) -> None:
        """How far the delta of each client here is from the mean; None where it has no part in it, or nobody knows."""
        lr = lr_of_mean(self.settings, round_index, is_exact=self.flat.is_exact)
        if lr is None:
            return
        for client, upload in flight.uploads.items():
            turn = flight.turns[client]
            if turn.block == block and upload.weight:
                turn.drift = relative_drift(upload.delta, self.model.committed(self._clock, block), commit, lr)

    def _shift_active(self, client: Client) -> None:
        """A commit of the active block inside the round: s' = held; X += s' - s; s = s'. Optimizer state stays."""
        assert client.start is not None
        new_start = self.flat.as_held(self.block, self.model.held(client, self.block))
        self.model.shift(self.block, new_start - client.start)
        client.start = new_start


def _plain(upload: Upload) -> list[Any]:
    return [upload.delta, upload.weight, upload.gradient_norm]
