"""What the clients of a rank do between the engine's verbs: optimizer steps, and each client's own part in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.turn_id import TurnId
from lightning_parablock.random_state import seed_all
from lightning_parablock.seeds import derive_seed
from lightning_parablock.training.block_states import BlockStates
from lightning_parablock.training.buffers import BuffersBefore
from lightning_parablock.training.client_switch import ClientSwitch
from lightning_parablock.training.gradients import ReachedBlocks, gradient_norm
from lightning_parablock.training.local_steps import OwnSteps, add_proximal_term, warmed_up
from lightning_parablock.training.samples import samples_of

Closure = Callable[[], Any]


class LocalTraining:
    """The training of one fit on one rank.

    Args:
        engine: The rounds.
        optimizer: Returns the local optimizer, which Lightning may replace.
        own_steps: Which of a round's local steps this rank's clients make.
        client_switch: What changes from client to client where they take turns; None where each has a rank of its own.
        buffers: Puts the module's buffers back where a turn is discarded.
    """

    def __init__(
        self,
        engine: RoundEngine,
        optimizer: Callable[[], Optimizer],
        own_steps: OwnSteps,
        client_switch: ClientSwitch | None,
        buffers: BuffersBefore,
    ) -> None:
        self.engine = engine
        self.client_switch = client_switch
        self._optimizer = optimizer
        self._own_steps = own_steps
        self._buffers = buffers
        self._block_states = BlockStates(engine.settings.block_optimizer_state)
        names = [block.name for block in engine.flat.blocks]
        self._reached = ReachedBlocks(names, lambda client: engine.transport.describe_client(client))
        self._has_stepped = False
        self._samples: list[int] = []
        self._gradient_norm: float | None = None
        own_steps.begin()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the block of the turn under way."""
        return self.engine.flat.parameters(self.engine.block)

    @property
    def whose_turn(self) -> TurnId:
        """The turn under way."""
        return TurnId(self.engine.round, self.engine.turn, self.engine.active_client)

    # --- turns --------------------------------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Begin the next turn, and the next round where the last one is over."""
        engine = self.engine
        turns = engine.turns or engine.begin_round()
        client = turns[engine.turn]
        engine.begin_turn(client)
        self._own_steps.begin()
        if self.client_switch is not None:
            self.client_switch.begin_turn(client, engine.round)
        if client is not None:
            self._block_states.enter(self._optimizer(), (client, engine.block), self.parameters)

    def end_turn(self) -> None:
        """End the turn, and the round where it was its last one."""
        engine = self.engine
        client, block, parameters = engine.active_client, engine.block, self.parameters
        self._note_reached()
        engine.end_turn()
        self._buffers.end_turn(discarded=engine.discarded)
        if client is not None:
            self._block_states.leave(self._optimizer(), (client, block), parameters, discarded=engine.discarded)
        if self.client_switch is not None:
            self.client_switch.end_turn(client)
        if engine.round_is_over:
            engine.end_round()
            if self.client_switch is not None:
                self.client_switch.end_round()

    def finish(self) -> None:
        """Drain. The optimizer keeps no state of the block whose round was not finished."""
        BlockStates("reset").leave(self._optimizer(), (0, 0), self.parameters)
        self._note_reached()
        ends_turn = self.engine.has_open_turn
        self.engine.finish()
        self._buffers.end_turn(discarded=ends_turn and self.engine.discarded)

    # --- steps --------------------------------------------------------------------------------------------------------

    def skips_batch(self) -> bool:
        """Whether no client trains here on the next batch: an idle turn, or the client has made its own steps."""
        return self.engine.active_client is None or self._own_steps.are_over(self.engine.steps)

    def count_samples(self, batch: Any, module: Any) -> None:
        """Take note of a batch on which the client is about to train.

        Raises:
            ConfigurationError: clients are weighted by samples, and the batch does not tell how many it has.
        """
        self._buffers.note()
        by_samples = self.engine.settings.weighting == "samples"
        self._samples.append(samples_of(batch, module, exact=by_samples))

    def discount_batch(self) -> None:
        """The batch that was counted last has given no loss: the client has not trained on it."""
        self._samples.pop()

    def step(self, take: Callable[[Closure], Any], closure: Closure, gradient_scale: Callable[[], float]) -> Any:
        """Take one optimizer step on the float32 master copy, with what the client adds to its gradients.

        Once an optimizer step, also with gradient accumulation; the block is switched later, at the batch's end. Where
        the client has trained on no batch of the step, no parameter has a gradient.

        Args:
            take: Lightning's own step with a closure.
            closure: Forward and backward; returns the loss.
            gradient_scale: By which the gradients of the closure are multiplied.
        """
        engine, settings = self.engine, self.engine.settings
        self._has_stepped = True
        if engine.active_client is None:
            return take(closure)

        def closure_then_master() -> Any:
            loss = closure()
            if not self._samples:  # also where zero_grad leaves zeros, by which momentum would move the block
                for parameter in self.parameters:
                    parameter.grad = None
            self._reached.note(self.parameters)
            if engine.wants_gradient_norm:
                self._gradient_norm = gradient_norm(self.parameters) / gradient_scale()
            engine.flat.put_master_in_place()
            if settings.proximal_mu:
                starts = engine.flat.parts(engine.block, engine.start)
                add_proximal_term(self.parameters, starts, gradient_scale() * settings.proximal_mu)
            # None: a gradient scaler has nothing to unscale, and would fail
            return loss if any(parameter.grad is not None for parameter in self.parameters) else None

        try:
            with warmed_up(self._optimizer(), engine.steps, settings.local_warmup_steps):
                return take(closure_then_master)
        finally:
            engine.flat.take_master_back()

    def advance(self) -> bool:
        """Advance the clock if the batch that is over brought an optimizer step; returns whether it did."""
        if not self._has_stepped:
            return False
        samples, norm = sum(self._samples), self._gradient_norm
        self._has_stepped, self._samples, self._gradient_norm = False, [], None
        self.engine.after_step(samples, norm)
        return True

    def _note_reached(self) -> None:
        engine = self.engine
        client = engine.active_client
        if client is not None:
            has_trained = engine.clients[client].samples > 0
            self._reached.end_turn(client, engine.round, engine.block, has_trained=has_trained)

    # --- beginning, stopping and resuming -----------------------------------------------------------------------------

    def seed(self, client: int, seed: int) -> None:
        """Give the client that begins a random state of its own.

        Args:
            client: The first one of this rank.
            seed: Of what this rank's clients draw for themselves.
        """
        if self.client_switch is not None:
            self.client_switch.begin_turn(self.engine.active_client, self.engine.round)
        else:
            seed_all(derive_seed(seed, "client", client))

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, besides the engine's."""
        return {
            "samples": list(self._samples),
            "reached": self._reached.state(),
            "buffers_before": self._buffers.state(),
            "block_states": self._block_states.state(),
            # The keys are part of the sidecars' format.
            "turn_keeper": None if self.client_switch is None else self.client_switch.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state`."""
        self._samples = list(state["samples"])
        self._reached.load_state(state["reached"])
        self._buffers.load_state(state["buffers_before"])
        self._block_states.load_state(state["block_states"])
        if self.client_switch is not None:
            self.client_switch.load_state(state["turn_keeper"])
