"""The oracle held against the method: what must hold of the rules alone, whatever runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.oracle import OracleConfig, OracleResult, run_fedbcd, run_oracle
from tests.support.threads import on_one_thread
from tests.tasks import OPTIMIZERS, Task, assert_same_bits, mlp_task, relative_difference, transformer_task

K = 4
DELAYS = [0, 3, K, K + 2, 2 * K, 3 * K]
REPEATING = (0, 1, 1, 2, 1, 3, 4, 4)  # with repeats inside the window of 3K, some at once
TASKS = {task.name: task for task in (transformer_task(), transformer_task(tied=True), mlp_task())}
EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
WITHOUT_TIED = pytest.mark.parametrize("task", [TASKS["transformer"], TASKS["mlp"]], ids=["transformer", "mlp"])
WITH_TIED = pytest.mark.parametrize("task", [TASKS["tied transformer"], TASKS["mlp"]], ids=["tied transformer", "mlp"])
SMOOTH_OPTIMIZERS = ["sgd", "adamw"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with on_one_thread():
        yield


def config_for(task: Task, **changes: object) -> OracleConfig:
    """Seven rounds and a short one, with repeats, over the task's own blocks."""
    schedule = tuple(block % len(task.block_names) for block in REPEATING)
    config = OracleConfig(task.block_names, schedule, n_clients=2, total_steps=30, local_steps=K, delay_steps=K)
    return replace(config, **changes)


def run(task: Task, config: OracleConfig, optimizer: str) -> OracleResult:
    return run_oracle(config, task.make_model, task.loss_fn, OPTIMIZERS[optimizer])


def blocking(task: Task, config: OracleConfig, optimizer: str) -> dict[str, Tensor]:
    return run_fedbcd(config, task.make_model, task.loss_fn, OPTIMIZERS[optimizer])


def initial_weights(task: Task) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in task.make_model().named_parameters()}


def test_tasks_are_deterministic_and_learn() -> None:
    for task in TASKS.values():
        config = config_for(task, delay_steps=K + 2)
        first, second = run(task, config, "adamw"), run(task, config, "adamw")
        assert_same_bits(first.weights, second.weights)
        model = task.make_model()
        batches = [(client, step) for client in range(2) for step in range(12)]
        before = sum(task.loss_fn(model, *batch).item() for batch in batches)
        model.load_state_dict(first.weights, strict=False)
        assert sum(task.loss_fn(model, *batch).item() for batch in batches) < before


# Delay 0 is federated block coordinate descent.


@pytest.mark.parametrize("compression", ["bf16", "int8", "int4", "topk", "sparse"])
@pytest.mark.parametrize(("server", "n_clients"), [("sgd", 1), ("nesterov", 3)])
def test_delay_0_equals_fedbcd_with_compression(compression: str, server: str, n_clients: int) -> None:
    task = TASKS["transformer"]
    config = config_for(task, delay_steps=0, server=server, n_clients=n_clients, compression=compression)
    expected = blocking(task, config, "adamw_default")
    assert_same_bits(run(task, config, "adamw_default").weights, expected)
    plain = blocking(task, replace(config, compression="none"), "adamw_default")
    assert relative_difference(expected, plain) > 1e-4


@EACH_TASK
@pytest.mark.parametrize("samples", [None, lambda client, step: 1 + (client + step) % 3], ids=["uniform", "samples"])
@pytest.mark.parametrize(("server", "n_clients"), [("sgd", 1), ("sgd", 3), ("nesterov", 3), ("adam", 3), ("yogi", 2)])
def test_delay_0_equals_fedbcd(
    task: Task, server: str, n_clients: int, samples: Callable[[int, int], int] | None
) -> None:
    config = config_for(task, delay_steps=0, server=server, server_lr=0.7, n_clients=n_clients, total_steps=18)
    config = replace(config, samples=samples, server_lr_share=lambda t: 1 / (1 + t), server_tau=0.1)
    for in_flight_value in ("local", "anchor"):
        result = run(task, replace(config, in_flight_value=in_flight_value), "adamw_default")
        assert_same_bits(result.weights, blocking(task, config, "adamw_default"))


# One client waits for no other.


@WITH_TIED
def test_one_client_has_the_bits_of_delay_0_at_every_delay(task: Task) -> None:
    config = config_for(task, n_clients=1)
    expected = run(task, replace(config, delay_steps=0), "adamw_default").weights
    for delay_steps in DELAYS[1:]:
        assert_same_bits(run(task, replace(config, delay_steps=delay_steps), "adamw_default").weights, expected)


@WITHOUT_TIED
@pytest.mark.parametrize("optimizer", SMOOTH_OPTIMIZERS)
def test_one_client_is_plain_block_coordinate_training(task: Task, optimizer: str) -> None:
    config = config_for(task, n_clients=1, delay_steps=K + 2)
    model = task.make_model()
    parameters = dict(model.named_parameters())
    for step in range(config.total_steps):
        if step % K == 0:
            block = task.block_names[config.schedule[step // K]]
            local = OPTIMIZERS[optimizer]([parameters[name] for name in block])
        model.zero_grad()
        task.loss_fn(model, 0, step).backward()
        local.step()
    trained = {name: value.detach() for name, value in parameters.items()}
    assert relative_difference(run(task, config, optimizer).weights, trained) < 1e-5


# Clients that see the same data have nothing to wait for either.


@WITH_TIED
@pytest.mark.parametrize("n_clients", [2, 4])
def test_same_data_has_the_bits_of_fedbcd_at_every_delay(task: Task, n_clients: int) -> None:
    task = task.with_same_data()
    config = config_for(task, n_clients=n_clients)
    expected = blocking(task, config, "adamw_default")
    for delay_steps in DELAYS if n_clients == 2 else [K + 2]:
        assert_same_bits(run(task, replace(config, delay_steps=delay_steps), "adamw_default").weights, expected)


@WITHOUT_TIED
@pytest.mark.parametrize("optimizer", SMOOTH_OPTIMIZERS)
def test_same_data_on_three_clients_equals_fedbcd_to_rounding(task: Task, optimizer: str) -> None:
    task = task.with_same_data()
    config = config_for(task, n_clients=3)
    expected = blocking(task, config, optimizer)
    for delay_steps in (3, 2 * K):
        actual = run(task, replace(config, delay_steps=delay_steps), optimizer).weights
        assert relative_difference(actual, expected) < 1e-5


def test_different_data_differs_from_fedbcd_at_every_delay_but_0() -> None:
    """Without this, the equalities above could hold because nothing is ever delayed."""
    task = TASKS["mlp"]
    results = [run(task, config_for(task, delay_steps=delay), "sgd").weights for delay in DELAYS]
    for one in range(len(DELAYS)):
        for other in range(one):
            assert relative_difference(results[one], results[other]) > 1e-4


# With one block, two known algorithms.


def local_training(task: Task, client: int, start: dict[str, Tensor], steps: range) -> dict[str, Tensor]:
    """K steps on the whole model from ``start``: what the client learnt, end minus start."""
    model = task.make_model()
    model.load_state_dict(start, strict=False)
    optimizer = OPTIMIZERS["adamw_default"](list(model.parameters()))
    for step in steps:
        optimizer.zero_grad()
        task.loss_fn(model, client, step).backward()
        optimizer.step()
    return {name: value.detach() - start[name] for name, value in model.named_parameters()}


def mean(deltas: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    total = dict(deltas[0])
    for delta in deltas[1:]:
        total = {name: total[name] + delta[name] for name in total}
    return {name: total[name] / len(deltas) for name in total}


def plus(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one[name] + other[name] for name in one}


def rounds_of(config: OracleConfig) -> list[range]:
    """The steps of each round."""
    return [range(start, min(start + K, config.total_steps)) for start in range(0, config.total_steps, K)]


def one_block(task: Task, **changes: object) -> OracleConfig:
    return config_for(task, block_names=task.as_one_block(), schedule=(0,) * 5, n_clients=3, total_steps=18, **changes)


@WITH_TIED
def test_one_block_at_delay_0_is_federated_averaging(task: Task) -> None:
    config = one_block(task, delay_steps=0)
    weights = initial_weights(task)
    for steps in rounds_of(config):
        weights = plus(weights, mean([local_training(task, client, weights, steps) for client in range(3)]))
    assert_same_bits(run(task, config, "adamw_default").weights, weights)


@WITH_TIED
def test_one_block_at_delay_k_is_delay_corrected_local_sgd(task: Task) -> None:
    """X = W + Delta: the mean is one round old, a client's own progress is not."""
    config = one_block(task, delay_steps=K)
    weights = initial_weights(task)
    starts = [weights] * 3
    late: list[dict[str, Tensor]] = []
    for steps in rounds_of(config):
        deltas = [local_training(task, client, starts[client], steps) for client in range(3)]
        weights = plus(weights, mean(late)) if late else weights
        starts = [plus(weights, delta) for delta in deltas]
        late = deltas
    assert_same_bits(run(task, config, "adamw_default").weights, plus(weights, mean(late)))


# What was committed is what the weights moved by.


@pytest.mark.parametrize("in_flight_value", ["local", "anchor"])
@pytest.mark.parametrize("server", ["sgd", "nesterov"])
@pytest.mark.parametrize("delay_steps", DELAYS)
def test_weights_moved_by_the_sum_of_the_increments(delay_steps: int, server: str, in_flight_value: str) -> None:
    task = TASKS["mlp"]
    config = config_for(task, n_clients=3, delay_steps=delay_steps, server=server, in_flight_value=in_flight_value)
    result, start = run(task, config, "adamw"), initial_weights(task)
    assert [(t, block) for t, block, _ in result.increments] == list(enumerate(config.schedule))
    total = {name: torch.zeros_like(value) for name, value in start.items()}
    for _, block, increment in result.increments:
        assert set(increment) == set(task.block_names[block])
        total = total | {name: total[name] + increment[name] for name in increment}
    moved = {name: result.weights[name] - start[name] for name in start}
    assert relative_difference(total, moved) < 1e-5
    if server == "sgd":
        for t, _, increment in result.increments:
            start = start | plus(
                {name: start[name] for name in increment}, mean([result.deltas[t, client] for client in range(3)])
            )
        assert relative_difference(result.weights, start) < 1e-5


# What was sent, and what is kept to be sent, is what there was to send.


def summed(parts: Iterable[dict[str, Tensor]], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sum by name, in float64, zero for what no part has."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in like.items()}
    for part in parts:
        total |= {name: total[name] + value.double() for name, value in part.items()}
    return total


@pytest.mark.parametrize("in_flight_value", ["local", "anchor"])
@pytest.mark.parametrize("compression", ["bf16", "int8", "int4", "topk", "sparse"])
@pytest.mark.parametrize("delay_steps", [0, 3, K, 2 * K])
def test_sent_and_kept_are_the_sum_of_the_deltas(delay_steps: int, compression: str, in_flight_value: str) -> None:
    task = TASKS["mlp"]
    config = config_for(
        task, n_clients=3, delay_steps=delay_steps, compression=compression, in_flight_value=in_flight_value
    )
    result, start = run(task, config, "adamw"), initial_weights(task)
    for client in range(3):
        deltas = summed((delta for (_, i), delta in result.deltas.items() if i == client), start)
        sent = summed((part for (_, i), part in result.sent.items() if i == client), start)
        assert relative_difference(plus(sent, result.e[client]), deltas) < 1e-6
        assert any(value.any() for value in result.e[client].values())
    means = summed((mean([result.sent[t, client] for client in range(3)]) for t in range(config.n_rounds)), start)
    moved = {name: result.weights[name].double() - start[name].double() for name in start}
    assert relative_difference(plus(moved, result.e_server), means) < 1e-6
    assert any(value.any() for value in result.e_server.values())


def test_without_compression_nothing_is_kept() -> None:
    task = TASKS["mlp"]
    result = run(task, config_for(task), "sgd")
    assert result.sent == result.deltas
    assert not any(value.any() for kept in (*result.e, result.e_server) for value in kept.values())


def test_each_step_of_error_feedback_in_numbers() -> None:
    """Top-k of one value a block of two, both ways: client 0 and client 1 train rounds 0 and 2, client 1 sits out 1."""
    progress = {
        (0, 0): (4.0, 1.0), (0, 1): (1.0, 2.0),
        (1, 0): (0.0, 2.0),
        (2, 0): (2.0, 0.0), (2, 1): (1.0, 0.0),
    }  # fmt: skip
    config = OracleConfig(
        block_names=(("p.0", "p.1"),),
        schedule=(0, 0, 0),
        n_clients=2,
        total_steps=3,
        local_steps=1,
        delay_steps=0,
        compression="topk",
        keep=1 / 1024,
        trains=lambda client, step: (step, client) in progress,
    )

    def loss_fn(model: nn.Module, client: int, step: int) -> Tensor:
        first, second = progress[step, client]
        return -(first * model.p[0] + second * model.p[1])

    result = run_oracle(config, lambda: Scalars([0.0, 0.0]), loss_fn, lambda p: torch.optim.SGD(p, lr=1.0))

    def numbers(values: dict[str, Tensor]) -> tuple[float, ...]:
        return tuple(value.item() for value in values.values())

    assert {key: numbers(value) for key, value in result.sent.items()} == {
        (0, 0): (4, 0),  # 4, 1; keeps 0, 1
        (0, 1): (0, 2),  # 1, 2; keeps 1, 0
        (1, 0): (0, 3),  # 0, 2 and the 1; keeps nothing
        (2, 0): (2, 0),
        (2, 1): (2, 0),  # 1, 0 and the 1, kept while it sat out
    }
    # The server: the mean is 2, 1, it sends 2, 0. Then 0, 3 and the 1: 0, 4. Then 2, 0.
    assert [numbers(increment) for _, _, increment in result.increments] == [(2, 0), (0, 4), (2, 0)]
    assert numbers(result.weights) == (4, 4)
    assert [numbers(kept) for kept in (*result.e, result.e_server)] == [(0, 0)] * 3


def test_held_values_are_of_the_raw_delta() -> None:
    """While its delta is on its way a client goes on from all of it, not from what of it will arrive."""
    config = OracleConfig(
        block_names=(("p.0", "p.1"),),
        schedule=(0, 0),
        n_clients=1,
        total_steps=2,
        local_steps=1,
        delay_steps=1,
        compression="topk",
        keep=1 / 1024,
    )
    seen: list[list[float]] = []

    def loss_fn(model: nn.Module, client: int, step: int) -> Tensor:
        seen.append([p.item() for p in model.p])
        return -(4 * model.p[0] + 1 * model.p[1])

    result = run_oracle(config, lambda: Scalars([0.0, 0.0]), loss_fn, lambda p: torch.optim.SGD(p, lr=1.0))
    assert seen == [[0, 0], [4, 1]]
    assert [value.item() for value in result.weights.values()] == [8, 0]
    assert [value.item() for value in result.e[0].values()] == [0, 2]


# The clock, in exact arithmetic: gradients are given numbers, so what a client sees at a step can be written down.


class Scalars(nn.Module):
    """As many blocks as wanted, each of one number."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.p = nn.ParameterList(nn.Parameter(torch.tensor(value)) for value in start)


def run_scalars(
    config: OracleConfig, start: list[float], progress: Callable[[int, int, int], float]
) -> tuple[OracleResult, dict[tuple[int, int], list[float]]]:
    """Train so that step ``step`` adds ``progress(client, step, block)``; also return what each step saw."""
    seen: dict[tuple[int, int], list[float]] = {}

    def loss_fn(model: nn.Module, client: int, step: int) -> Tensor:
        active = config.schedule[step // config.local_steps]
        assert [p.requires_grad for p in model.p] == [block == active for block in range(len(start))]
        assert (client, step) not in seen and all(p.grad is None for p in model.p)
        seen[client, step] = [p.item() for p in model.p]
        return -progress(client, step, active) * model.p[active]

    def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    return run_oracle(config, lambda: Scalars(start), loss_fn, make_optimizer), seen


def small_progress(client: int, step: int, block: int) -> int:
    return 1 + (7 * client + 3 * step + 5 * block) % 11


class OnPaper:
    """The method's clock as a sum over rounds: no state, no order of effects, no q and r."""

    def __init__(self, config: OracleConfig, start: list[float]) -> None:
        self.config, self.start, self.rounds = config, start, range(config.n_rounds)

    def delta(self, t: int, client: int) -> int:
        K = self.config.local_steps
        steps = range(t * K, min((t + 1) * K, self.config.total_steps))
        return sum(small_progress(client, step, self.config.schedule[t]) for step in steps)

    def increment(self, t: int) -> Fraction:
        """The commit of round t, from all visits of its block up to t."""
        config, clients = self.config, range(self.config.n_clients)
        visits = [u for u in self.rounds if u <= t and config.schedule[u] == config.schedule[t]]
        means = [sum(Fraction(self.delta(u, client), config.n_clients) for client in clients) for u in visits]
        if config.server == "sgd":
            return Fraction(config.server_lr) * means[-1]
        mu = Fraction(config.server_momentum)
        velocity = sum(mu**age * value for age, value in enumerate(reversed(means)))
        return Fraction(config.server_lr) * (means[-1] + mu * velocity)

    def seen(self, client: int, step: int, block: int) -> Fraction:
        """What client sees of a block in step ``step``: commits due, its own deltas not due, the round's progress."""
        config, value = self.config, Fraction(self.start[block])
        for t in (u for u in self.rounds if config.schedule[u] == block and u * config.local_steps <= step):
            begun, ended = t * config.local_steps, (t + 1) * config.local_steps
            if step < ended:
                value += sum(small_progress(client, earlier, block) for earlier in range(begun, step))
            elif ended + config.delay_steps <= step:
                value += self.increment(t)
            elif config.in_flight_value == "local":
                value += self.delta(t, client)
        return value

    def weights(self) -> list[Fraction]:
        rounds, schedule = self.rounds, self.config.schedule
        return [
            Fraction(value) + sum(self.increment(t) for t in rounds if schedule[t] == block)
            for block, value in enumerate(self.start)
        ]


@st.composite
def scalar_configs(draw: st.DrawFn) -> OracleConfig:
    local_steps, n_rounds = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    server = draw(st.sampled_from(["sgd", "nesterov"]))
    return OracleConfig(
        block_names=(("p.0",), ("p.1",), ("p.2",)),
        schedule=tuple(draw(st.lists(st.integers(0, 2), min_size=n_rounds, max_size=n_rounds))),
        n_clients=draw(st.sampled_from([1, 2, 4])),
        total_steps=n_rounds * local_steps - draw(st.integers(0, local_steps - 1)),
        local_steps=local_steps,
        delay_steps=draw(st.integers(0, 4 * local_steps + 1)),
        in_flight_value=draw(st.sampled_from(["local", "anchor"])),
        server=server,
        server_lr=draw(st.sampled_from([1.0, 0.5])),
        server_momentum=0.5,
    )


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(scalar_configs())
def test_every_step_of_every_client_sees_what_the_clock_says(config: OracleConfig) -> None:
    start = [3.0, -2.0, 5.0]
    result, seen = run_scalars(config, start, small_progress)
    paper = OnPaper(config, start)
    assert len(seen) == config.n_clients * config.total_steps
    for (client, step), values in seen.items():
        assert values == [paper.seen(client, step, block) for block in range(3)], (client, step)
    for (t, client), delta in result.deltas.items():
        assert list(delta.values()) == [paper.delta(t, client)]
    assert [float(result.weights[f"p.{block}"]) for block in range(3)] == paper.weights()


# The order of roundings, where another order would give another number. 2**24 + 1 is not in fp32.

BIG = 2.0**24


def one_scalar(**changes: object) -> OracleConfig:
    config = OracleConfig((("p.0",),), (0,) * 8, n_clients=1, total_steps=3, local_steps=1, delay_steps=3)
    return replace(config, **changes)


def test_held_adds_own_deltas_one_by_one_oldest_first() -> None:
    """(W + d1) + d2 is 1.25; both W + (d1 + d2) and (W + d2) + d1 are 1."""
    _, seen = run_scalars(one_scalar(), [BIG], lambda client, step, block: [1 - BIG, 0.25, 0][step])
    assert seen[0, 2] == [1.25]


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ((BIG, 1.0, -BIG), 0.0),  # from the right: 1/3
        ((BIG, -BIG, 1.0), 1 / 3),
        ((5.0, 0.0, 0.0), 5 / 3),  # times the rounded 1/3: another number
        ((BIG, *[1.0] * 15), BIG / 16),  # pairwise or in lanes: more
    ],
)
def test_the_sum_goes_by_client_and_is_divided_after(deltas: tuple[float, ...], expected: float) -> None:
    config = one_scalar(n_clients=len(deltas), total_steps=1, delay_steps=0)
    result, _ = run_scalars(config, [0.0], lambda client, step, block: deltas[client])
    assert torch.equal(result.weights["p.0"], torch.tensor(expected))


def test_a_commit_of_the_active_block_adds_one_difference() -> None:
    """X + (s' - s) is BIG - 1; (X - s) + s' is BIG. Here s = 0.625, X = 0.125, s' = BIG."""
    progress = {(0, 0): 0.625, (1, 0): 2 * BIG, (0, 2): -0.5}
    config = one_scalar(n_clients=2, total_steps=4, local_steps=2, delay_steps=1)
    result, seen = run_scalars(config, [0.0], lambda client, step, block: progress.get((client, step), 0.0))
    assert seen[0, 3] == [BIG - 1]
    assert float(result.deltas[1, 0]["p.0"]) == -1  # measured from s', and with its rounding


def test_a_short_last_round_that_ends_at_a_due_step_merges_before_its_delta() -> None:
    """After the step the commit is merged, only then does anybody know that the round is over."""
    progress = {(0, 0): 1.0, (1, 0): 2 * BIG, (0, 4): 0.25}
    config = one_scalar(n_clients=2, total_steps=6, local_steps=4, delay_steps=2)
    result, _ = run_scalars(config, [0.0], lambda client, step, block: progress.get((client, step), 0.0))
    assert float(result.deltas[1, 0]["p.0"]) == 0  # (1.25 + (BIG - 1)) - BIG; before the merge it was 0.25


def test_a_client_makes_a_fresh_optimizer_of_the_active_block_each_round() -> None:
    task, made = TASKS["mlp"], []
    config = config_for(task, delay_steps=3)

    def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append([tuple(parameter.shape) for parameter in parameters])
        return OPTIMIZERS["adamw"](parameters)

    run_oracle(config, task.make_model, task.loss_fn, make_optimizer)
    shapes = {name: tuple(value.shape) for name, value in initial_weights(task).items()}
    blocks = [[shapes[name] for name in task.block_names[block]] for block in config.schedule]
    assert made == [block for block in blocks for _ in range(config.n_clients)]


def test_a_parameter_of_no_block_stays_as_it_is() -> None:
    task = TASKS["transformer"]
    config = config_for(task, block_names=task.block_names[1:], schedule=(0, 1, 2, 3, 0, 3, 3, 1))
    result, start = run(task, config, "sgd"), initial_weights(task)
    for name, value in start.items():
        assert torch.equal(result.weights[name], value) == (name in task.block_names[0])


def test_a_wrong_configuration_is_refused() -> None:
    task = TASKS["mlp"]
    for wrong in (
        {"schedule": (0,)},
        {"server": "adamw"},
        {"optimizer_state": "offload"},
        {"in_flight_value": "none"},
        {"delay_steps": -1},
        {"compression": "fp8"},
    ):
        with pytest.raises(AssertionError):
            config_for(task, **wrong)
