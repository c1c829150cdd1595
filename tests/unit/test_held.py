"""One model, shown as each client sees it; W is stored beside it only where the model shows something else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.federation.client import Client, InFlight
from lightning_parablock.federation.held import HeldModel
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.settings import InFlightValue, Settings
from tests.support.engine import blocks_of, loopback, run_rounds, schedule_of
from tests.tasks import adamw_default, assert_same_bits, mlp_task

K = 4
TASK = mlp_task()


def three_blocks() -> tuple[nn.Module, FlatBlocks]:
    model = TASK.make_model()
    return model, FlatBlocks(model, blocks_of(model, TASK.block_names))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def stored(held: HeldModel) -> dict[int, int]:
    """Blocks of which values are stored beside the model, and how many."""
    return {block: len(versions) for block, versions in enumerate(held._stored) if versions}


def test_at_the_start_the_model_is_w_and_nothing_is_stored() -> None:
    model, flat = three_blocks()
    before = weights(model)
    client = Client(0, [0, 0, 0])
    held = HeldModel(flat, "local")
    held.show_all(client)
    assert all(torch.equal(held.committed(client, b), flat.pack(b)) for b in range(3))
    assert_same_bits(weights(model), before)
    assert stored(held) == {}


def test_a_trained_block_keeps_w_beside_it_and_gives_it_up_when_it_is_committed() -> None:
    _, flat = three_blocks()
    client = Client(0, [0, 0, 0])
    held = HeldModel(flat, "local")
    w = flat.pack(1)
    start = held.begin_training(client, 1)
    assert torch.equal(start, w)
    assert stored(held) == {1: 1}
    flat.unpack(1, w + 1)
    assert torch.equal(start, w), "s must not follow the training"
    assert torch.equal(held.committed(client, 1), w)
    client.in_flight.append(InFlight(0, 1, (w + 1) - w))
    held.show(client, 1)
    assert torch.equal(flat.pack(1), w + ((w + 1) - w))
    assert stored(held) == {1: 1}
    client.merge(0, [0, 1, 0])
    held.release([client.versions])
    held.add_version(1, 1, w + 2)
    held.show(client, 1)
    assert torch.equal(flat.pack(1), w + 2)
    assert stored(held) == {}


def test_two_clients_at_different_versions_see_their_own() -> None:
    _, flat = three_blocks()
    first, second = Client(0, [0, 0, 0]), Client(1, [0, 0, 0])
    held = HeldModel(flat, "local")
    w = flat.pack(0)
    first.merge(0, [1, 0, 0])
    held.release([first.versions, second.versions])
    held.add_version(0, 1, w + 5)
    for client, expected in ((first, w + 5), (second, w), (first, w + 5)):
        held.show(client, 0)
        assert torch.equal(flat.pack(0), expected)
        assert torch.equal(held.committed(client, 0), expected)
    assert stored(held) == {0: 1}
    second.merge(0, [1, 0, 0])
    held.release([first.versions, second.versions])
    held.show(second, 0)
    assert torch.equal(flat.pack(0), w + 5)
    assert stored(held) == {}


def test_showing_w_and_undoing_it_leaves_no_trace() -> None:
    model, flat = three_blocks()
    client = Client(0, [0, 0, 0])
    held = HeldModel(flat, "local")
    w = [flat.pack(b) for b in range(3)]
    held.begin_training(client, 2)
    flat.unpack(2, w[2] * 3)
    client.in_flight.append(InFlight(0, 0, torch.ones_like(w[0])))
    held.show(client, 0)
    before = weights(model)
    replaced = held.show_committed(client)
    assert sorted(replaced) == [0, 2]
    assert all(torch.equal(flat.pack(b), w[b]) for b in range(3))
    held.undo(replaced)
    assert_same_bits(weights(model), before)


def test_shift_moves_what_is_being_trained() -> None:
    _, flat = three_blocks()
    client = Client(0, [0, 0, 0])
    held = HeldModel(flat, "local")
    start = held.begin_training(client, 0)
    flat.unpack(0, start * 2)
    held.shift(0, torch.full_like(start, 0.25))
    assert torch.equal(flat.pack(0), start * 2 + 0.25)


# Through whole runs: the rule holds after every step.


class Watched(RoundEngine):
    """Looks at the model after every step and at every join."""

    def __init__(self, look: Callable[[RoundEngine], None], *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._look = look

    def after_step(self, samples: int = 1, gradient_norm: float | None = None) -> None:
        super().after_step(samples, gradient_norm)
        self._look(self)

    def end_round(self) -> None:
        super().end_round()
        self._look(self)


def run_watched(settings: Settings, n_clients: int, look: Callable[[RoundEngine], None], total_steps: int = 30) -> None:
    model, flat = three_blocks()
    transport = loopback(flat, settings.server_optimizer)
    engine = Watched(look, flat, settings, range(n_clients), transport, schedule_of(settings, 3, n_clients))
    run_rounds(engine, TASK, model, adamw_default, total_steps)


def settings_for(delay_steps: int, in_flight_value: InFlightValue = "local") -> Settings:
    # Of this seed's order over three blocks some repeat at once.
    return Settings(
        local_steps=K, delay_steps=delay_steps, block_order="random", seed=3, in_flight_value=in_flight_value
    )


@pytest.mark.parametrize("delay_steps", [0, 3, K, K + 2, 2 * K, 3 * K])
def test_with_one_client_nothing_is_stored_but_for_active_and_in_flight_blocks(delay_steps: int) -> None:
    most: list[int] = []

    def look(engine: RoundEngine) -> None:
        (client,) = engine.clients.values()
        busy = {d.block for d in client.in_flight} | ({engine.block} if engine.has_open_turn else set())
        assert set(stored(engine.model)) <= busy
        assert all(n == 1 for n in stored(engine.model).values())
        most.append(len(busy))

    run_watched(settings_for(delay_steps), 1, look)
    assert max(most) >= (1 if delay_steps == 0 else 2), "the run held nothing that could have been stored"


@pytest.mark.parametrize("in_flight_value", ["local", "anchor"])
@pytest.mark.parametrize("n_clients", [1, 3])
def test_whenever_a_block_is_not_being_trained_it_is_the_held_value(
    n_clients: int, in_flight_value: InFlightValue
) -> None:
    seen: set[int] = set()

    def look(engine: RoundEngine) -> None:
        if engine.active_client is None:
            return
        client = engine.clients[engine.active_client]
        versions = copy.copy(client.versions)
        for block in range(3):
            expected = engine.model.committed(client, block)
            for delta in client.in_flight if in_flight_value == "local" else []:
                if delta.block == block:
                    expected = expected + delta.delta
            if block != engine.block:
                assert torch.equal(engine.flat.pack(block), expected)
        assert client.versions == versions
        seen.add(len(client.in_flight))

    run_watched(settings_for(K + 2, in_flight_value), n_clients, look)
    assert {1, 2} <= seen
