"""ParaBlock's rounds on one rank, and the one place where their effects are ordered (arXiv 2511.19959).

W is the committed model and b the block of round t. Each client i of the round's cohort does, on its own data::

    s          =  held_i(b)                          the block's value as the client's round begins
    X_i[b]     :  K optimizer steps from s, all other blocks frozen
    Delta_i    =  X_i[b] - s

and the server, in the background (other server optimizers and codecs change this line alone)::

    W[b]       =  W[b] + lr G,   G = (sum of n_i Delta_i) / (sum of n_i) over the cohort, ascending i

Until that commit is merged the client works with its own progress on top of what is committed::

    held_i(b)  =  ((W[b] + d_1) + d_2) + ...         its own deltas on b in flight, oldest first

Time is the common clock of optimizer steps. Round t takes steps tK+1 to (t+1)K, its exchange is due ``delay_steps``
later (in the first ``delay_warmup_rounds`` at once) and is merged exactly then, never on arrival. With delay_steps =
qK + r that is after step r of round t+1+q or, if r = 0, at the join of round t+q. A commit of the block that is being
trained moves it along: s' = held_i(b); X_i[b] = X_i[b] + (s' - s); s = s'. docs/method.md has the reasons.

A rank trains its clients of the cohort in turn. One round on one rank::

    for client in engine.begin_round():
        engine.begin_turn(client)
        for _ in range(local_steps):
            ...                        # one optimizer step on engine.block; none where client is None
            engine.after_step()
        engine.end_turn()
    engine.end_round()

Each client merges inside its own turn what is due there. In a round's last turn so do all clients that sit out, on all
ranks after the same number of steps: W is what all have merged.
"""

from __future__ import annotations

import logging
import math
import time

from torch import Tensor

from lightning_parablock.blocks.flat import is_finite
from lightning_parablock.errors import CallOrderError, NonFiniteError
from lightning_parablock.federation.client import Client, InFlight
from lightning_parablock.federation.drift import lr_of_mean, relative_drift
from lightning_parablock.federation.flights import Flight, TurnFacts
from lightning_parablock.federation.profiling import profiled
from lightning_parablock.federation.schedule import Work
from lightning_parablock.federation.state import MAX_RECORDS, RoundState
from lightning_parablock.server.uploads import Upload

log = logging.getLogger(__name__)


class RoundEngine(RoundState):
    """The verbs of a round, in the order in which they are called; :class:`RoundState` has arguments and attributes.

    A profile of torch.profiler shows them as ranges "parablock::" plus the verb, but for :meth:`after_step`, in which
    only the merges take time.
    """

    @profiled("begin_round")
    def begin_round(self, work: Work | None = None) -> list[int | None]:
        """Look up who trains what in the round, unless ``work`` says so already; returns :attr:`turns`."""
        self.transport.await_round(self.round)
        self.work = self.schedule.work_of(self.round, self.norms) if work is None else work
        self.transport.expect(self.round, self.work)
        cohort = {client for clients in self.work.values() for client in clients}
        hosted = [client for client in self.clients if client in cohort]
        self.turns = [*hosted, *[None] * ((self.n_turns or len(hosted)) - len(hosted))]
        self.turn = self.steps = 0
        self._release_values()
        return self.turns

    @profiled("begin_turn")
    def begin_turn(self, client_id: int | None) -> None:
        """Load the client's values into the model and take s; afterwards the optimizer may change the block."""
        self.is_running = self.turn_is_open = True
        self.steps = 0
        if client_id is None:
            return
        client = self.loaded = self.active = self.clients[client_id]
        self.block = self.block_of(client_id)
        self.turn_facts[client_id] = TurnFacts(time.time(), self.block)
        self.model.show_all(client)
        client.start = self.model.begin_training(client, self.block)
        self.flat.open_master(self.block)
        client.samples, client.gradient_norm = 0, 0.0

    def after_step(self, samples: int = 1, gradient_norm: float | None = None) -> None:
        """Advance the clock by one optimizer step; merge the commits that are due inside the round, if any are.

        Args:
            samples: How many the step trained on: 0 where the client has none left and skips the step.
            gradient_norm: Gradient norm of the block, where the block order needs it; the first one of a turn counts.

        Raises:
            CallOrderError: no turn is open.
        """
        self._require_open_turn()
        self.steps += 1
        self.transport.note_step(self.round)
        self.transport.check(self.round, self.block)
        client = self.active
        if client is not None:
            if gradient_norm is not None and samples and not client.samples:
                client.gradient_norm = gradient_norm
            client.samples += samples
        if self.steps == self.delay_rest_steps:
            self._merge_in_turn(client)

    @profiled("end_turn")
    def end_turn(self) -> None:
        """Measure the active client's delta from s; afterwards the optimizer must not touch the block.

        Raises:
            CallOrderError: no turn is open.
            NonFiniteError: the delta contains NaN or infinity, and ``nonfinite_delta`` is "stop".
        """
        self._require_open_turn()
        client, self.active, self.turn_is_open = self.active, None, False
        self.turn += 1
        self.discarded = False
        if client is None:
            return
        assert client.start is not None
        delta = self.flat.difference(self.block, client.start) if client.samples else None
        if delta is not None and not is_finite(delta):
            self._discard(client)
            delta = None
        make = self.contributions
        self.uploads[client.id] = make.without_weight(client.start) if delta is None else make.of_turn(client, delta)
        self.flat.close_master()
        facts = self.turn_facts[client.id]
        facts.end_s, facts.steps, facts.samples = time.time(), self.steps, client.samples
        facts.nonfinite = self.discarded
        client.start = None

    @profiled("end_round")
    def end_round(self) -> None:
        """Join: merge what is due, submit the deltas; without delay wait for their commits."""
        delay = self.settings.delay
        if delay.rounds and not delay.rest_steps:
            self._merge(self.round - delay.rounds)
        elif delay.rest_steps and not self.turns:  # no turn of this rank could do so
            self._merge(self.due_in_turn)
        self._give_absent_ones_no_weight()
        uploads, facts = self.uploads, self.turn_facts
        self.uploads, self.turn_facts = {}, {}
        self.submit(self.round, self.work, uploads, facts)
        if delay.is_none_in(self.round):
            self._merge(self.round)
        self.round += 1
        self.turns, self.turn, self.steps = [], 0, 0

    def finish(self) -> None:
        """End the run: submit a short last round as it is, then commit everything in flight in round order.

        Afterwards the model shows W, the same on every rank. Secure sums leave a short round out.
        """
        has_begun = not self.at_round_start
        self.transport.announce_end(self.round + has_begun)
        if has_begun and not self.settings.aggregation.takes_short_rounds:
            self._drop_round()
        elif has_begun:
            if self.turn_is_open:
                self.end_turn()
            self.end_round()
        elif self.turn_is_open:
            self._abandon_turn()
        for round_index in sorted(self.flights):
            self._merge(round_index)
        self.model.show_all(self.loaded)
        self.is_running = False

    # --- submit and merge ---------------------------------------------------------------------------------------------

    @profiled("submit")
    def submit(self, round_index: int, work: Work, uploads: dict[int, Upload], facts: dict[int, TurnFacts]) -> None:
        """Start the exchanges of a round, one per block; returns at once.

        Args:
            round_index: Number of the round.
            work: Its blocks with their clients, on all ranks.
            uploads: Uploads of this rank's clients, by client.
            facts: What they did in their turns, by client.
        """
        blocks = {client: block for block, cohort in work.items() for client in cohort}
        uploads = {
            client: self.contributions.for_exchange(round_index, blocks[client], client, upload)
            for client, upload in uploads.items()
        }
        flight = self.flights[round_index] = Flight(work, uploads, facts)
        for block, cohort in work.items():
            own = {client: uploads[client] for client in cohort if client in uploads}
            flight.exchanges[block] = self.transport.submit(round_index, block, own, cohort)
            for client, upload in own.items():
                if upload.weight:
                    self.clients[client].in_flight.append(InFlight(round_index, block, upload.delta))
        self.model.show(self.loaded, self.block)

    @profiled("merge")
    def _merge_in_turn(self, client: Client | None) -> None:
        """Inside a turn: take the commits that are due into its client; the last turn of a round does so for all."""
        flight, is_last = self.flights.get(self.due_in_turn), self.turn == len(self.turns) - 1
        if flight is None:
            return
        if client is None:
            if is_last:
                self._merge(self.due_in_turn)
            return
        self.take_in(client, self.due_in_turn)
        if is_last:
            self._advance_clock(self.due_in_turn, flight)
        for block in flight.work:
            if block == self.block:
                self._shift_active(client)
            else:
                self.model.show(client, block)

    @profiled("merge")
    def _merge(self, round_index: int) -> None:
        """Between turns: take the commits of a round into every client."""
        flight = self.flights.get(round_index)
        if flight is None:  # before the first exchange, or one without delay
            return
        self._land(round_index, flight)
        self._advance_clock(round_index, flight)
        for block in flight.work:
            self.model.show(self.loaded, block)

    def take_in(self, client: Client, round_index: int) -> None:
        """Take the commits of a round into one client, once they are here; the model is not changed."""
        flight = self.flights.get(round_index)
        if flight is not None:
            self._land(round_index, flight)
            client.merge(round_index, self._versions_after(flight))
            self._release_values()

    @profiled("land")
    def _land(self, round_index: int, flight: Flight) -> None:
        """Take the commits from their exchanges, once: each becomes the newest version of its block."""
        if flight.has_landed:
            return
        for block, exchange in flight.exchanges.items():
            from_s = time.time()
            commit = exchange.wait(lambda block=block: self.model.committed(self.clock, block))
            flight.waits_s.append((from_s, time.time()))
            self._note_drift(round_index, flight, block, commit)
            self._refuse_overflow(round_index, block, commit)
            self.model.add_version(block, self.clock.versions[block] + 1, commit)
        flight.has_landed = True
        if self.active is not None:
            self.turn_facts[self.active.id].stood_still_s += flight.wait_peer_s + flight.exposed_s

    def _advance_clock(self, round_index: int, flight: Flight) -> None:
        """All clients have merged a round: W is what they have, and what was before it is not needed any more."""
        versions = self._versions_after(flight)
        for client in (self.clock, *self.clients.values()):
            client.merge(round_index, versions)
        self._release_values()
        names = [block.name for block in self.flat.blocks]
        self.records += [flight.record_of(round_index, client, names) for client in sorted(flight.turn_facts)]
        if len(self.records) > MAX_RECORDS:
            del self.records[: MAX_RECORDS // 2]
        norms = {block: exchange.facts.gradient_norm for block, exchange in flight.exchanges.items()}
        self.norms |= {block: norm for block, norm in norms.items() if math.isfinite(norm)}
        del self.flights[round_index]
        self.transport.settle(round_index)
        self.contributions.settle(round_index)

    def _shift_active(self, client: Client) -> None:
        """A commit of the active block inside the round: s' = held; X += s' - s; s = s'. Optimizer state stays."""
        new_start = self.flat.as_held(self.block, self.model.held(client, self.block))
        self.model.shift(self.block, new_start - self.start)
        client.start = new_start

    # --- inside -------------------------------------------------------------------------------------------------------

    def _require_open_turn(self) -> None:
        if not self.turn_is_open:
            raise CallOrderError("no turn is open: call begin_turn first")

    def _abandon_turn(self) -> None:
        client, self.active, self.turn_is_open = self.active, None, False
        if client is not None:
            client.start = None
            self.flat.close_master()
            del self.turn_facts[client.id]

    def _drop_round(self) -> None:
        said = "parablock: secure sums leave round %d out: it is short; to lose no step, train a multiple of %d"
        log.warning(said, self.round, self.settings.local_steps)
        if self.turn_is_open:
            self._abandon_turn()
        self.uploads, self.turn_facts, self.turns, self.turn, self.steps = {}, {}, [], 0, 0

    def _discard(self, client: Client) -> None:
        """A delta that is not finite never enters a mean: stop, or continue as if the client had not trained."""
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
        """Where the run ends within a round, some have not had their turn; and a rank may have no client in it."""
        now_s = time.time()
        for client in self.hosted_cohort:
            if client not in self.uploads:
                block = self.block_of(client)
                self.uploads[client] = self.contributions.without_weight(self.flat.pack(block))
                self.turn_facts[client] = TurnFacts(now_s, block, end_s=now_s)
        if not self.turn_facts:
            self.turn_facts[min(self.clients)] = TurnFacts(now_s, min(self.work), end_s=now_s)

    def _release_values(self) -> None:
        """Clients outside the cohort are where the clock is."""
        clients = (self.clock, *(self.clients[client] for client in self.hosted_cohort))
        self.model.release([client.versions for client in clients])

    def _versions_after(self, flight: Flight) -> list[int]:
        return [version + (block in flight.work) for block, version in enumerate(self.clock.versions)]

    def _refuse_overflow(self, round_index: int, block: int, commit: Tensor) -> None:
        """Every rank has the same bits here, so all of them stop, with the W before this commit."""
        if is_finite(self.flat.as_held(block, commit)):
            return
        raise NonFiniteError(
            f"round {round_index}, block {self.flat.blocks[block].name!r}: the committed value contains NaN or "
            "infinity although every delta in it was finite: their sum, the server optimizer or the compression has "
            "overflowed; lower the learning rate of the clients or of server_optimizer, or set gradient_clip_val"
        )

    def _note_drift(self, round_index: int, flight: Flight, block: int, commit: Tensor) -> None:
        """How far each client's delta is from the mean; None where it has no part in it, or the mean is not known."""
        lr = lr_of_mean(self.settings, round_index, is_exact=self.flat.is_exact)
        if lr is None:
            return
        for client, upload in flight.uploads.items():
            facts = flight.turn_facts[client]
            if facts.block == block and upload.weight:
                facts.drift = relative_drift(upload.delta, self.model.committed(self.clock, block), commit, lr)
