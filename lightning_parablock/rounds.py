"""The state machine of one rank and its clients: the only place where effects are ordered.

Time is the common clock of optimizer steps. Round t takes steps tK+1 to (t+1)K; its exchange is due ``delay_steps``
after its last step and is merged exactly then, never on arrival, so the network's speed changes no weight. With
delay_steps = qK + r that is after step r of round t+1+q, or at the join of round t+q if r = 0 (docs/method.md).

A round on one rank::

    engine.begin_round()
    for client in engine.client_ids:
        engine.begin_turn(client)
        for _ in range(local_steps):
            ...                        # one optimizer step on engine.block
            engine.after_step()
        engine.end_turn()
    engine.end_round()
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_parablock.client import Client, InFlight
from lightning_parablock.drift import lr_of_mean, relative_drift
from lightning_parablock.feedback import Residuals
from lightning_parablock.flat import FlatBlocks
from lightning_parablock.held import HeldModel
from lightning_parablock.records import RoundRecord
from lightning_parablock.schedule import block_of_round
from lightning_parablock.server import StatePiece
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Exchange, Transport, Upload

MAX_RECORDS = 100_000


@dataclass
class _Turn:
    """One client's part of a round: when it computed, and how long it stood still for the round's exchange."""

    start_s: float
    block: int
    steps: int = 0
    end_s: float = 0.0
    stood_still_s: float = 0.0
    exposed_s: float = 0.0
    wait_peer_s: float = 0.0
    samples: int = 0
    drift: float | None = None


class RoundEngine:
    """Runs the rounds of the clients of one rank on one model.

    Args:
        flat: The model's blocks, holding the common starting value W.
        settings: The run's settings.
        clients: Ids of the clients this rank hosts, ascending.
        transport: Carries the exchanges.

    Attributes:
        round: Number of the round that runs or comes next.
        block: Index of its block.
        records: The records of finished rounds, oldest first, bounded.
        is_running: Whether rounds are under way: then the model may show something else than W.
    """

    def __init__(
        self,
        flat: FlatBlocks,
        settings: Settings,
        clients: Sequence[int],
        transport: Transport,
    ) -> None:
        self.settings = settings
        self.transport = transport
        self.flat = flat
        self.clients = {i: Client(i, [0] * len(flat.blocks)) for i in clients}
        self.model = HeldModel(flat, self.clients.values(), settings.in_flight_value)
        self.round = 0
        self.block = self._block_of(0)
        self.records: list[RoundRecord] = []
        self._active: Client | None = None
        self._loaded: Client = next(iter(self.clients.values()))
        self._residuals = Residuals()
        self._uploads: dict[int, Upload] = {}
        self._exchanges: dict[int, Exchange] = {}
        self._commits: dict[int, Tensor] = {}
        self._turns: dict[tuple[int, int], _Turn] = {}
        self._first_round = 0
        self.is_running = False

    @property
    def client_ids(self) -> list[int]:
        """Ids of the clients of this rank, in the order of their turns."""
        return list(self.clients)

    @property
    def has_open_turn(self) -> bool:
        """Whether a client is in the middle of its local steps."""
        return self._active is not None

    # --- the verbs of a round, in order -------------------------------------------------------------------------------

    def begin_round(self) -> int:
        """Look up the block of the round and return its index."""
        self.block = self._block_of(self.round)
        return self.block

    def begin_turn(self, client_id: int) -> None:
        """Load the client's values into the model and take s; afterwards the optimizer may change the block."""
        client = self._loaded = self._active = self.clients[client_id]
        self.is_running = True
        self._turns[self.round, client_id] = _Turn(time.time(), self.block)
        self.model.show_all(client)
        client.start = self.model.begin_training(client, self.block)
        self.flat.open_master(self.block)
        client.steps = client.samples = 0

    def after_step(self, samples: int = 1) -> None:
        """Advance the clock by one optimizer step; merge the commit that is due inside the round, if one is.

        Args:
            samples: On how many the step trained: 0 where the client has nothing left and lets the step pass by.
        """
        client = self._turn_of()
        client.steps += 1
        client.samples += samples
        self.transport.check(self.round, self.block)
        delay_rounds, delay_rest_steps = self.settings.delay_rounds_and_steps
        if client.steps == delay_rest_steps:
            self._merge(client, self.round - 1 - delay_rounds)

    @property
    def at_round_start(self) -> bool:
        """Whether the active client has made no local step of the round yet."""
        return self._turn_of().steps == 0

    @property
    def turn_is_over(self) -> bool:
        """Whether the active client has made all local steps of the round."""
        return self._turn_of().steps >= self.settings.local_steps

    def end_turn(self) -> None:
        """Measure the active client's delta from s; afterwards the optimizer must not touch the block."""
        client = self._turn_of()
        assert client.start is not None
        if client.samples:
            weight = client.samples if self.settings.weighting == "samples" else 1
            self._uploads[client.id] = Upload(self.flat.difference(self.block, client.start), weight)
        else:  # who did not train has no part in the mean: it is that of the others
            self._uploads[client.id] = Upload(torch.zeros_like(client.start), weight=0)
        self.flat.close_master()
        turn = self._turns[self.round, client.id]
        turn.end_s, turn.steps, turn.samples = time.time(), client.steps, client.samples
        client.start, self._active = None, None

    def end_round(self) -> None:
        """Join: merge what is due, submit the deltas; at delay 0 wait for their commit."""
        delay_rounds, delay_rest_steps = self.settings.delay_rounds_and_steps
        if delay_rest_steps == 0 and delay_rounds > 0:
            self._merge_everywhere(self.round - delay_rounds)
        self._submit()
        if self.settings.delay_steps == 0:
            self._merge_everywhere(self.round)
        self.round += 1

    def finish(self) -> None:
        """End the run: submit a short last round as it is, then commit everything in flight in round order.

        Afterwards the model shows W, the same on every client. Needs a single client on this rank if a turn is open.
        """
        begun = self._active is not None and self._active.steps > 0
        self.transport.announce_end(self.round + begun)
        if self._active is not None:
            if self._active.steps:
                self.end_turn()
                self.end_round()
            else:
                self._abandon_turn()
        for round_index in sorted(self._exchanges):
            self._merge_everywhere(round_index)
        self.model.show_all(self._loaded)
        self.is_running = False

    # --- W beside the trajectory --------------------------------------------------------------------------------------

    def show_committed(self) -> dict[int, Tensor]:
        """Make the model show W, from merged commits only; the result goes to :meth:`undo_show_committed`."""
        return self.model.show_committed(self._loaded)

    def undo_show_committed(self, replaced: dict[int, Tensor]) -> None:
        """Put the trained values back, bit for bit."""
        self.model.undo(replaced)

    # --- stop and go on -----------------------------------------------------------------------------------------------

    def state(self, replaced: Mapping[int, Tensor] | None = None) -> dict[str, Any]:
        """What this rank must know to go on from here, beside W and the random states: tensors and plain values.

        Args:
            replaced: What :meth:`show_committed` returned, if the model shows W at the moment.
        """
        versions = [client.versions for client in self.clients.values()]
        assert all(v == versions[0] for v in versions), "in the middle of a round clients of one rank hold different W"
        active = self._active
        values = None
        if active is not None:  # while it trains, the block always shows something else than W
            values = replaced[self.block] if replaced is not None else self.flat.pack(self.block)
        now_s = time.time()
        return {
            "round": self.round,
            "active": None
            if active is None
            else {
                "client": active.id,
                "steps": active.steps,
                "samples": active.samples,
                "values": values,
            },
            "uploads": [[client, upload.delta, upload.weight] for client, upload in self._uploads.items()],
            "in_flight": [
                [d.round, d.block, client.id, d.delta, d.weight]
                for client in self.clients.values()
                for d in client.in_flight
            ],
            "turns": [
                [round_index, client, {**asdict(turn), "start_s": turn.start_s - now_s, "end_s": turn.end_s - now_s}]
                for (round_index, client), turn in self._turns.items()
            ],
            "residuals": self._residuals.state(),
            "server": [dict(vars(piece)) for piece in self.transport.server.state()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`, on a fresh engine whose model shows W; submits again what was in flight.

        Afterwards the turn that was open is open again, if one was. All ranks must do so at the same point.
        """
        self.transport.server.load_state(StatePiece(**piece) for piece in state["server"])
        self._residuals.load_state(state["residuals"])
        now_s = time.time()
        for round_index, client, turn in state["turns"]:
            shifted = {**turn, "start_s": turn["start_s"] + now_s, "end_s": turn["end_s"] + now_s}
            self._turns[round_index, client] = _Turn(**shifted)
        by_round: dict[tuple[int, int], dict[int, Upload]] = {}
        for round_index, block, client, delta, weight in state["in_flight"]:
            by_round.setdefault((round_index, block), {})[client] = Upload(delta.to(self.flat.device), weight)
        self._first_round = min((round_index for round_index, _ in by_round), default=state["round"])
        for (self.round, self.block), self._uploads in sorted(by_round.items(), key=lambda item: item[0]):
            self._submit()
        self.round = state["round"]
        self._uploads = {c: Upload(delta.to(self.flat.device), weight) for c, delta, weight in state["uploads"]}
        if state["active"] is not None:
            self._reopen_turn(**state["active"])

    def begin_at(self, round_index: int) -> None:
        """Begin a fresh engine with this round, nothing being in flight."""
        self.round = self._first_round = round_index

    def _reopen_turn(self, client: int, steps: int, samples: int, values: Tensor) -> None:
        turn = self._turns[self.round, client]
        self.begin_round()
        self.begin_turn(client)  # s is the held value, also where a commit has moved it since
        self._turns[self.round, client] = turn
        self.clients[client].steps, self.clients[client].samples = steps, samples
        self.flat.unpack(self.block, values)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _block_of(self, round_index: int) -> int:
        return block_of_round(self.settings.block_order, len(self.flat.blocks), round_index, self.settings.seed)

    def _turn_of(self) -> Client:
        if self._active is None:
            raise RuntimeError("no client's turn is open: call begin_turn first")
        return self._active

    def _abandon_turn(self) -> None:
        client, self._active = self._turn_of(), None
        client.start = None
        self.flat.close_master()
        del self._turns[self.round, client.id]

    def _submit(self) -> None:
        uploads = {client: self._with_residual(client, upload) for client, upload in self._uploads.items()}
        self._uploads = {}
        self._exchanges[self.round] = self.transport.submit(self.round, self.block, uploads)
        for client_id, upload in uploads.items():
            flying = InFlight(self.round, self.block, upload.delta, upload.weight)
            self.clients[client_id].in_flight.append(flying)
        self.model.show(self._loaded, self.block)

    def _with_residual(self, client_id: int, upload: Upload) -> Upload:
        """With a lossy codec: the upload with what was left out before; who did not train keeps that for later."""
        if not self.settings.compression.is_lossy or upload.weight == 0:
            return upload
        numel = upload.delta.numel()
        return replace(upload, residual=self._residuals.begin(self.round, client_id, self.block, numel))

    def _merge_everywhere(self, round_index: int) -> None:
        for client in self.clients.values():
            self._merge(client, round_index)

    def _merge(self, client: Client, round_index: int) -> None:
        """Take the commit of a round into one client: W first, then every value that rests on it."""
        if round_index < self._first_round:  # the clock has not reached the first exchange yet
            return
        turn = self._turns[round_index, client.id]
        commit = self._wait(client, round_index)
        block = turn.block
        turn.drift = self._drift(client, round_index, block, commit)
        version = client.versions[block] + 1
        is_first = version not in (self.clients[c].versions[block] for c in self.clients if c != client.id)
        if is_first and self.settings.compression.is_lossy:
            commit.add_(self.model.committed(client, block))
        client.merge(round_index, block)
        if is_first:
            self.model.add_version(block, version, commit)
        if client is self._active and block == self.block:
            self._shift_active(client)
        elif client is self._loaded:
            self.model.show(client, block)
        self._finish_record(client, round_index)

    def _drift(self, client: Client, round_index: int, block: int, commit: Tensor) -> float | None:
        """How far the client's delta of the round is from the mean; None where it has no part in it, or none knows."""
        lr = lr_of_mean(self.settings, round_index, is_exact=self.flat.is_exact)
        flying = next((d for d in client.in_flight if (d.round, d.block) == (round_index, block)), None)
        if lr is None or flying is None or flying.weight == 0:
            return None
        return relative_drift(flying.delta, self.model.committed(client, block), commit, lr)

    def _shift_active(self, client: Client) -> None:
        """A commit of the active block inside the round: s' = held; X += s' - s; s = s'. Optimizer state stays."""
        assert client.start is not None
        new_start = self.flat.as_held(self.block, self.model.held(client, self.block))
        self.model.shift(self.block, new_start - client.start)
        client.start = new_start

    def _wait(self, client: Client, round_index: int) -> Tensor:
        if round_index not in self._commits:
            stood_from_s = time.time()
            self._commits[round_index] = self._exchanges[round_index].wait()
            self._note_wait(client, round_index, stood_from_s, time.time())
        return self._commits[round_index]

    def _note_wait(self, client: Client, round_index: int, from_s: float, until_s: float) -> None:
        facts = self._exchanges[round_index].facts
        waited = self._turns[round_index, client.id]
        waited.wait_peer_s = max(0.0, min(until_s, facts.ready_s) - from_s)
        waited.exposed_s = max(0.0, until_s - max(from_s, facts.ready_s))
        if self._active is not None:
            self._turns[self.round, client.id].stood_still_s += until_s - from_s

    def _finish_record(self, client: Client, round_index: int) -> None:
        turn = self._turns.pop((round_index, client.id))
        facts = self._exchanges[round_index].facts
        first = client.id == min(self.clients)
        record = RoundRecord(
            round=round_index,
            block=self.flat.blocks[turn.block].name,
            client=client.id,
            steps=turn.steps,
            start_s=turn.start_s,
            end_s=turn.end_s,
            compute_s=turn.end_s - turn.start_s - turn.stood_still_s,
            exchange_s=facts.end_s - facts.ready_s,
            exposed_s=turn.exposed_s,
            wait_peer_s=turn.wait_peer_s,
            # The messages are the rank's: where it hosts several clients, its first one's record carries them.
            upload_bytes=facts.upload_bytes if first else 0,
            download_bytes=facts.download_bytes if first else 0,
            exchange_start_s=facts.start_s,
            exchange_ready_s=facts.ready_s,
            exchange_end_s=facts.end_s,
            samples=turn.samples,
            drift=turn.drift,
        )
        self.records.append(record)
        if len(self.records) > MAX_RECORDS:
            del self.records[: MAX_RECORDS // 2]
        if not any((round_index, c) in self._turns for c in self.clients):
            del self._exchanges[round_index], self._commits[round_index]
            self.transport.server.settle(round_index)
            self._residuals.settle(round_index)
