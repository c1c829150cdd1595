"""Every formula of the planner against counting by hand."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from lightning_parablock.blocks.partition import Block
from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.federation.schedule import Schedule, block_of_round
from lightning_parablock.planning.choice import HEADROOM, choose_local_steps
from lightning_parablock.planning.compute import relative_step_costs
from lightning_parablock.planning.memory import (
    MemoryPart,
    ModelSize,
    exchanges_in_flight,
    memory_parts,
    total_bytes,
    window_bytes,
)
from lightning_parablock.planning.rank_turns import RankTurns
from lightning_parablock.planning.timing import (
    Links,
    busy_steps,
    exchange_of_ranks_s,
    exchange_s,
    following_blocks,
    hiding_steps,
    links_of,
    mean_hiding_steps,
    round_times,
    schedule,
    warm_up_s,
)
from lightning_parablock.planning.traffic import (
    Deltas,
    busiest,
    carried_scalars,
    traffic_by_role,
    traffic_of_clients,
    traffic_of_ranks,
)
from lightning_parablock.settings import (
    COMPRESSIONS,
    MAX_AUTO_STEPS,
    BlockOrder,
    Int4,
    Int8,
    LowRank,
    MeanAggregation,
    NoCompression,
    SecureAggregation,
    ServerNesterov,
    Settings,
    Sparse,
    TopK,
    Topology,
)
from lightning_parablock.system.units import (
    parse_bps,
    parse_flop_per_s,
    readable_bps,
    readable_number,
    readable_s,
)
from lightning_parablock.transport.chunks import HEADER_BYTES, SEND_WINDOW, WINDOW, Kind, chunks_of, shard_bounds

CODECS = [kind() for kind in COMPRESSIONS.values() if kind is not LowRank] + [Int8(group=64), TopK(keep=0.3)]
TOPOLOGIES: list[Topology] = ["sharded", "star"]
ORDERS: list[BlockOrder] = ["sequential", "reverse", "shuffle", "random", "importance"]


def messages(numel: int, n_clients: int, settings: Settings) -> list[tuple[int, int, Kind, int]]:
    """Every message of an exchange as (from, to, kind, bytes), as the transport cuts them."""
    codec = codec_of(settings.compression)
    found: list[tuple[int, int, Kind, int]] = []
    for server, shard in enumerate(shard_bounds(numel, n_clients, settings.topology)):
        for part in chunks_of(shard, settings.chunk_bytes, settings.topology):
            size = HEADER_BYTES + codec.payload_bytes(part.stop - part.start)
            for client in set(range(n_clients)) - {server}:
                found.append((client, server, Kind.DELTA, size))
                found.append((server, client, Kind.COMMIT, size))
    return found


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", CODECS, ids=repr)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("n_clients", [1, 2, 3, 5])
@pytest.mark.parametrize("numel", [1, 1000, 1024, 5000, 12_345])
def test_bytes_are_those_of_the_messages(numel: int, n_clients: int, topology: Topology, compression: Any) -> None:
    settings = Settings(topology=topology, compression=compression, chunk_bytes=8192)
    sent, received = [0] * n_clients, [0] * n_clients
    for source, target, _, size in messages(numel, n_clients, settings):
        sent[source] += size
        received[target] += size
    planned = traffic_of_clients(numel, n_clients, settings)
    assert [t.upload_bytes for t in planned] == sent
    assert [t.download_bytes for t in planned] == received


def test_of_two_factors_the_larger_one_counts() -> None:
    shapes = ((300, 50), (7,))
    carried = carried_scalars(15_007, shapes, LowRank(8))
    assert carried == 8 * 300 + 7
    assert carried_scalars(15_007, shapes, Sparse()) == carried_scalars(15_007, (), LowRank(8)) == 15_007
    plain, factors = Settings(compression="none"), Settings(compression="low_rank")
    assert traffic_of_clients(carried, 3, factors) == traffic_of_clients(carried, 3, plain)
    model = ModelSize((15_007, 100), 60_428, shapes=(shapes, ((100,),)))
    assert model.carried(LowRank(8)) == (carried, 100)
    parts = {part.purpose: part.size_bytes for part in memory_parts(model, 3, factors)}
    assert parts["the matrix whose factor is computed"] == 4 * 300 * 50
    assert parts["error feedback of the deltas"] == parts["server: committed values"] == 4 * 15_107
    assert "server: error feedback of the commits" not in parts
    messages_of = [one for one in memory_parts(model, 3, plain) if one.purpose == "messages under way"]
    assert parts["messages under way"] < messages_of[0].size_bytes


@pytest.mark.parametrize("n_clients", [1, 2, 3, 5])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_both_topologies_carry_two_times_n_minus_one_blocks(n_clients: int, topology: Topology) -> None:
    settings, numel = Settings(topology=topology, chunk_bytes=4096), 9000
    n_headers = len(messages(numel, n_clients, settings))
    total = sum(t.upload_bytes for t in traffic_of_clients(numel, n_clients, settings))
    assert total == 2 * (n_clients - 1) * numel * 4 + n_headers * HEADER_BYTES


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (3, 0), (0, 2, 1), (2, 0, 0, 3)])
def test_bytes_of_ranks_that_host_several_clients_or_none(counts: tuple[int, ...], topology: Topology) -> None:
    """Every delta goes in parts to the ranks that serve them, and every rank gets every commit, once."""
    settings, n = Settings(topology=topology, chunk_bytes=4096, compression=Int8()), len(counts)
    sent, received = [0] * n, [0] * n
    for source, target, kind, size in messages(5000, n, settings):
        times = counts[source] if kind == Kind.DELTA else 1
        sent[source] += times * size
        received[target] += times * size
    deltas = [Deltas(own, sum(counts) - own) for own in counts]
    planned = traffic_of_ranks(5000, deltas, settings)
    assert [(one.upload_bytes, one.download_bytes) for one in planned] == list(zip(sent, received, strict=True))


def test_roles() -> None:
    star = traffic_by_role(5000, 3, Settings(topology="star"))
    assert [t.upload_bytes for t in star.values()] == [2 * (20_000 + 128), 20_000 + 128]
    sharded = Settings(topology="sharded")
    assert list(traffic_by_role(5000, 3, sharded).values()) == [busiest(traffic_of_clients(5000, 3, sharded))]
    assert [t.upload_bytes for t in traffic_by_role(5000, 1, sharded).values()] == [0]


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delay_steps", "in_flight"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_exchanges_in_flight(delay_steps: int, in_flight: int) -> None:
    assert exchanges_in_flight(Settings(local_steps=4, delay_steps=delay_steps)) == in_flight


def by_purpose(parts: list[MemoryPart]) -> dict[str, int]:
    return {part.purpose: part.size_bytes for part in parts}


def test_memory_of_a_block_in_training_and_one_in_flight() -> None:
    model = ModelSize(numels=(3000, 10_000, 4000), weights_bytes=80_000)
    parts = memory_parts(model, 2, Settings(local_steps=4, delay_steps=4))
    assert by_purpose([part for part in parts if part.on_device]) == {
        "weights": 80_000,
        "gradient of the active block": 40_000,
        "optimizer state of the active block (AdamW)": 80_000,
        "start value of the active block": 40_000,
        "committed values of the blocks in flight": 16_000,
        "deltas in flight": 16_000,
        "commits that arrive": 16_000,
    }
    host = by_purpose([part for part in parts if not part.on_device])
    assert host.pop("messages under way") == window_bytes(10_000, 2, Settings())
    assert host == {"server: committed values": 4 * 8500}


@pytest.mark.parametrize(
    ("n_flying", "expected"), [(1, 16 * 30 + 12 * 20), (2, 16 * 30 + 12 * 30), (3, 20 * 16 + 12 * 70)]
)
def test_memory_of_the_round_that_needs_most(n_flying: int, expected: int) -> None:
    """An active block takes 16 bytes a parameter, one in flight 12; none is in flight twice before every other is."""
    model = ModelSize(numels=(10, 20, 30), weights_bytes=0)
    every = [
        16 * active + 12 * sum(flying)
        for i, active in enumerate(model.numels)
        for others in [model.numels[:i] + model.numels[i + 1 :]]
        for flying in itertools.product(others, repeat=n_flying)
        if max(flying.count(n) for n in others) - min(flying.count(n) for n in others) <= 1
    ]
    settings = Settings(local_steps=4, delay_steps=4 * n_flying)
    assert total_bytes(memory_parts(model, 2, settings), on_device=True) == expected == max(every)


def test_blocking_keeps_no_second_block() -> None:
    model = ModelSize(numels=(10, 30), weights_bytes=0)
    parts = memory_parts(model, 2, Settings(delay_steps=0))
    assert total_bytes(parts, on_device=True) == 30 * (4 + 8 + 4 + 4 + 4)


@pytest.mark.parametrize(("numels", "blocking_is_larger"), [((10, 30), True), ((30, 30, 30), False)])
def test_with_a_warm_up_the_larger_kind_of_round_counts(numels: tuple[int, ...], blocking_is_larger: bool) -> None:
    model, later = ModelSize(numels, weights_bytes=0), Settings(local_steps=4, delay_steps=4)
    blocking = Settings(local_steps=4, delay_steps=0)
    of_both = [total_bytes(memory_parts(model, 2, one), on_device=True) for one in (blocking, later)]
    assert (of_both[0] > of_both[1]) == blocking_is_larger
    warm_up = Settings(local_steps=4, delay_steps=4, delay_warmup_rounds=3)
    assert total_bytes(memory_parts(model, 2, warm_up), on_device=True) == max(of_both)
    auto = Settings(local_steps="auto", delay_steps=None, delay_warmup_rounds=3)  # type: ignore[arg-type]
    assert total_bytes(memory_parts(model, 2, auto), on_device=True) == max(of_both)


def test_half_precision_needs_a_master_copy() -> None:
    full = ModelSize(numels=(10, 10), weights_bytes=80)
    half = ModelSize(numels=(10, 10), weights_bytes=40, weight_bytes=2)
    settings = Settings(local_steps=4, delay_steps=4)
    device = [total_bytes(memory_parts(model, 2, settings), on_device=True) for model in (full, half)]
    assert device[1] - device[0] == -40 - 10 * 2 + 10 * 4 + 10 * 4


@pytest.mark.parametrize("width", [1, 2])
def test_secure_sums_need_residuals_and_masks(width: int) -> None:
    model = ModelSize(numels=(5000, 3000), weights_bytes=32_000)
    plain, secure = (
        by_purpose(memory_parts(model, 4, Settings(local_steps=4, delay_steps=4, aggregation=choice)))
        for choice in (MeanAggregation(), SecureAggregation(width))
    )
    assert {name: secure[name] for name in secure.keys() - plain.keys()} == {
        "error feedback of the deltas": 4 * 8000,
        "error feedback from before the exchanges in flight": 4 * 3000,
        "masks of the round's block, made while it trains": width * 5000,
    }


def test_what_the_server_and_error_feedback_need_is_host_memory() -> None:
    model, local = ModelSize(numels=(30, 10), weights_bytes=160), {"local_steps": 4, "delay_steps": 4}

    def host(n_clients: int = 2, **settings: Any) -> dict[str, int]:
        parts = memory_parts(model, n_clients, Settings(**local, **settings))
        found = by_purpose([part for part in parts if not part.on_device])
        del found["messages under way"]
        return found

    assert host() == {"server: committed values": 20 * 4}
    nesterov = host(server_optimizer=ServerNesterov())
    assert nesterov["server: optimizer state"] == 20 * 4
    assert nesterov["server: both from before the exchanges in flight"] == 5 * 4
    assert host(topology="star") == {"server: committed values": 40 * 4}
    assert host(compression=Int4()) == {
        "server: committed values": 20 * 4,
        "server: error feedback of the commits": 20 * 4,
        "server: both from before the exchanges in flight": 5 * 4,
        "error feedback of the deltas": 40 * 4,
        "error feedback from before the exchanges in flight": 10 * 4,
    }


def test_deltas_follow_the_turns_of_a_rank_and_residuals_its_clients() -> None:
    """7 clients on 2 ranks: one hosts 4, of which a cohort of 3 brings it 3 turns at most."""
    model = ModelSize(numels=(30, 10), weights_bytes=160)
    shared = {"local_steps": 4, "delay_steps": 4, "compression": Int8(), "block_optimizer_state": "offload"}
    one, many = (memory_parts(model, 2, Settings(**shared, **c)) for c in ({}, {"clients": 7, "cohort": 3}))
    changed = {
        k: (by_purpose(one).get(k), size) for k, size in by_purpose(many).items() if by_purpose(one).get(k) != size
    }
    assert changed == {
        "deltas of the round's earlier turns": (None, 2 * 30 * 4),
        "deltas in flight": (10 * 4, 3 * 10 * 4),
        "optimizer state of the other blocks (AdamW)": (10 * 8, (4 * 40 - 30) * 8),
        "error feedback of the deltas": (40 * 4, 4 * 40 * 4),
        "error feedback from before the exchanges in flight": (10 * 4, 3 * 10 * 4),
    }
    blocking = memory_parts(model, 2, Settings(delay_steps=0, clients=7, cohort=3))
    assert by_purpose(blocking)["deltas in flight"] == 3 * 30 * 4
    assert "deltas of the round's earlier turns" not in by_purpose(blocking)


@pytest.mark.parametrize("n_clients", [1, 2, 3, 7])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("compression", [NoCompression(), Int8()], ids=repr)
@pytest.mark.parametrize("numel", [1000, 20_000, 200_000])
def test_the_windows_hold_the_largest_messages(
    numel: int, n_clients: int, topology: Topology, compression: Any
) -> None:
    settings = Settings(topology=topology, compression=compression, chunk_bytes=4096)
    streams: dict[tuple[int, int, Kind], list[int]] = {}
    for source, target, kind, size in messages(numel, n_clients, settings):
        streams.setdefault((source, target, kind), []).append(size)
    held = [0] * n_clients
    commits_of = [0] * n_clients  # one buffer for all who receive it
    for (source, target, kind), sizes in streams.items():
        held[target] += sum(sorted(sizes)[-WINDOW:])
        leaving = sum(sorted(sizes)[-SEND_WINDOW:])
        if kind == Kind.DELTA:
            held[source] += leaving
        else:
            commits_of[source] = leaving
    held = [one + other for one, other in zip(held, commits_of, strict=True)]
    assert window_bytes(numel, n_clients, settings) == max(held)


def test_the_window_does_not_grow_with_the_block() -> None:
    assert window_bytes(10**9, 2, Settings()) == window_bytes(10**8, 2, Settings())


# --- seconds ----------------------------------------------------------------------------------------------------------

LINKS = Links(client_bps=1e6, server_bps=4e6)


def test_an_exchange_between_shards_takes_as_long_as_the_busiest_link() -> None:
    settings, numel = Settings(topology="sharded"), 3_000_000
    for n, share in ((2, 1.0), (3, 4 / 3), (10, 1.8)):
        assert exchange_s(numel, n, settings, LINKS) == pytest.approx(share * numel * 4 * 8 / 1e6, rel=2e-3)
    assert exchange_s(numel, 1, settings, LINKS) == 0


def test_a_star_is_bound_by_the_servers_link_or_by_a_clients() -> None:
    settings, numel = Settings(topology="star", chunk_bytes=4096), 1_000_000
    one_chunk_bits = 8 * (4096 + 64)
    block_bits = 8 * traffic_of_clients(numel, 2, settings)[1].upload_bytes
    assert exchange_s(numel, 2, settings, LINKS) == pytest.approx((block_bits + one_chunk_bits) / 1e6)
    assert exchange_s(numel, 3, settings, LINKS) == pytest.approx((block_bits + 2 * one_chunk_bits) / 1e6)
    assert exchange_s(numel, 9, settings, LINKS) == pytest.approx(8 * (block_bits + 2 * one_chunk_bits) / 4e6)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_exchange_of_several_clients_per_rank_takes_as_long_as_the_busiest_direction(topology: Topology) -> None:
    settings, numel = Settings(topology=topology, chunk_bytes=4096), 1_000_000
    one_each = exchange_of_ranks_s(numel, [Deltas(1, 1)] * 2, settings, LINKS)
    assert one_each == exchange_s(numel, 2, settings, LINKS)
    two_each, three_at_one = [Deltas(2, 2)] * 2, [Deltas(0, 3), Deltas(3, 0)]
    # In halves of a block: sharded, a delta and a commit up; two deltas and a commit; three and a commit from rank 1.
    expected = {"sharded": [3 / 2, 4 / 2], "star": [2.0, 3.0]}[topology]
    found = [exchange_of_ranks_s(numel, deltas, settings, LINKS) / one_each for deltas in (two_each, three_at_one)]
    assert found == pytest.approx(expected, rel=1e-2)


def test_rounds_of_ranks_by_hand() -> None:
    """Five clients on two ranks, of which two train, and the second rank is slow."""
    trace = ((0, 1), (1, 4), (2, 3, 4))
    turns = RankTurns.of(Cohorts(5, 2, "rotation", availability=trace), [(0, 1), (2, 3, 4)])
    assert turns.trained == ((0, 2), (1, 1), (2, 0))
    assert turns.shortest_s([1.0, 3.0]) == 2.0  # of 6, 3 and 2
    assert turns.shortest_s([1.0, 0.5]) == 1.0
    assert turns.most_deltas == [Deltas(2, 2), Deltas(2, 2)]
    everyone = RankTurns.of(Cohorts(5), [(0, 1), (2, 3, 4)])
    assert everyone.trained == ((2, 3),) and everyone.most_deltas == [Deltas(2, 3), Deltas(3, 2)]
    assert RankTurns.of(Cohorts(2), [(0,), (1,)]).shortest_s([0.25, 0.5]) == 0.5


def test_compression_shortens_the_exchange_by_its_bytes() -> None:
    plain, small = (exchange_s(4_000_000, 4, Settings(compression=c), LINKS) for c in (NoCompression(), Int4()))
    assert plain / small == pytest.approx(4 / (0.5 + 2 / 64), rel=1e-3)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("n_clients", [2, 5])
def test_a_measured_exchange_gives_its_own_time_back(topology: Topology, n_clients: int) -> None:
    links = links_of(1_000_000, 2.0, n_clients, topology)
    pairs = n_clients - 1
    client_bits = 8e6 * (pairs if topology == "sharded" else 1)
    assert client_bits / links.client_bps == pytest.approx(2.0)
    assert 8e6 * pairs / links.server_bps == pytest.approx(2.0)


def test_caps_are_part_of_the_link() -> None:
    links = Links(client_bps=10.0, server_bps=20.0)
    assert links.capped([None, None], "sharded") == links
    assert links.capped([None, 5.0], "sharded") == Links(5.0, 20.0)
    assert links.capped([None, 5.0], "star") == Links(5.0, 20.0)
    assert links.capped([5.0, None], "star") == Links(10.0, 5.0)
    assert links.capped([5.0], "star") == Links(5.0, 5.0)


def test_round_times_are_those_of_the_method() -> None:
    compute, exchanges = [5.0, 1.0, 4.0, 2.0], [3.0, 3.0, 1.0, 9.0]
    times = round_times(compute, exchanges)
    assert times.compute_s == 3 and times.exchange_s == 4
    assert times.blocking_s == 7
    assert times.parablock_s == (3 + 4 + 2) / 3  # max(1, 3), max(4, 3), max(2, 1)
    assert times.hidden_share == (1 + 3 + 1) / (3 + 3 + 1)
    assert times.busy_share == (1 + 4 + 2) / (3 + 4 + 2)
    nothing = round_times([1.0, 1.0], [0.0, 0.0])
    assert nothing.hidden_share == nothing.busy_share == 1


def test_the_steps_of_a_compute_utilization_are_the_fewest() -> None:
    draws = random.Random(3)
    for _ in range(200):
        n = draws.randint(1, 5)
        step = [draws.uniform(0.5, 2) for _ in range(n)]
        exchanges = [draws.choice([0.0, draws.uniform(0, 40)]) for _ in range(n)]
        rounds = schedule(Settings(block_order=draws.choice(ORDERS)), n)
        share = draws.choice([0.3, 0.8, 0.95, 1.0])

        def reaches(steps: int, step: list[float] = step, rounds: list[int] = rounds, share: float = share) -> bool:
            computing = [steps * step[b] for b in rounds[1:]]
            lasting = [max(c, exchanges[b]) for c, b in zip(computing, rounds[:-1], strict=True)]  # noqa: B023
            return math.fsum(computing) / math.fsum(lasting) >= share

        found = busy_steps(step, exchanges, rounds, share)
        assert found == next(steps for steps in itertools.count(1) if reaches(steps))


def test_a_warm_up_takes_what_would_have_been_hidden() -> None:
    compute, exchanges = [5.0, 1.0, 4.0, 2.0], [3.0, 3.0, 1.0, 9.0]
    for warm_up in range(4):
        # Round t computes C_t; without delay it waits M_t, with it until M_{t-1} is over.
        later = [max(c, m) for c, m in zip(compute[1:], exchanges, strict=False)]
        without = sum([compute[0], *later[:warm_up]])
        blocking = sum(compute[: warm_up + 1]) + sum(exchanges[:warm_up])
        assert warm_up_s(compute[: warm_up + 1], exchanges[: warm_up + 1]) == blocking - without


# --- local steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 5])
def test_blocks_that_follow_each_other(order: BlockOrder, n_blocks: int) -> None:
    seen: set[tuple[int, int]] = set()
    for seed in range(60):
        made = Schedule(order, n_blocks, seed, Cohorts(1))
        rounds = [block for t in range(6 * n_blocks + 1) for block in made.work_of(t, {})]
        seen |= set(itertools.pairwise(rounds))
    assert set(following_blocks(order, n_blocks)) == seen


@pytest.mark.parametrize("order", ORDERS)
def test_the_smallest_k_is_found_by_trying(order: BlockOrder) -> None:
    rng = random.Random(7)
    for n_blocks in (1, 2, 3, 6):
        for _ in range(30):
            step = [rng.choice([0.1, 0.3, 0.7, 1.0]) for _ in range(n_blocks)]
            exchanges = [rng.choice([0.3, 0.7, 2.1, 5.0, 30.0]) for _ in range(n_blocks)]
            pairs = list(following_blocks(order, n_blocks))
            tried = next(
                k for k in itertools.count(1) if all(k * step[after] >= exchanges[before] for before, after in pairs)
            )
            assert hiding_steps(step, exchanges, order) == tried
            mean_step, mean_exchange = math.fsum(step) / n_blocks, math.fsum(exchanges) / n_blocks
            assert mean_hiding_steps(step, exchanges) == next(
                k for k in itertools.count(1) if k * mean_step >= mean_exchange
            )


def test_the_choice_keeps_room_and_its_limits() -> None:
    choice = choose_local_steps([1.0, 2.0], [10.0, 4.0], "sequential")
    assert (choice.local_steps, choice.hides) == (6, True)  # block 0 hides behind block 1, and 1 behind 0
    assert choice.local_steps * 2.0 >= HEADROOM * 10.0
    assert choose_local_steps([1.0], [0.0], "shuffle", at_least=4).local_steps == 4
    slow = choose_local_steps([1.0], [1000.0], "shuffle")
    assert (slow.local_steps, slow.hiding_steps, slow.hides) == (MAX_AUTO_STEPS, 1100, False)


def test_the_schedule_is_the_runs() -> None:
    settings = Settings(block_order="shuffle", seed=3)
    assert schedule(settings, 4, passes=2) == [block_of_round("shuffle", 4, t, 3) for t in range(8)]


def test_relative_costs_count_what_backward_crosses() -> None:
    sizes = {"a": 10, "b": 20, "c": 30, "d": 40}
    blocks = [Block("low", ("a", "b"), 30), Block("high", ("d",), 40), Block("split", ("b", "d"), 60)]
    assert relative_step_costs(sizes, blocks) == pytest.approx([1 + 1 + 0.3, 1 + 0.4 + 0.4, 1 + 0.9 + 0.6])


# --- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [("100mbit", 1e8), ("1.5 Gbit/s", 1.5e9), ("20Mbps", 2e7), (5000, 5e3), ("1e6", 1e6), ("2e3 kbit", 2e6)],
)
def test_rates(text: Any, rate_bps: float) -> None:
    assert parse_bps("rate", text) == rate_bps


def test_operations_a_second() -> None:
    assert parse_flop_per_s("flop_rate", "1.5tflops") == 1.5e12


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("100mbyte", "unit 'mbyte': choose from"),
        ("100mbt", "did you mean 'mbit'"),
        ("fast", "such as 100mbit or 1gbit, got 'fast'"),
        ("0", "must be more than 0"),
        ("1.2.3mbit", "got '1.2.3mbit'"),
        ("-1mbit", "got '-1mbit'"),
        ("1e999", "must be more than 0"),
    ],
)
def test_wrong_rates(text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        parse_bps("rate", text)


@pytest.mark.parametrize(
    ("rate_bps", "text"), [(12.0, "12 bit/s"), (9.5e4, "95 kbit/s"), (1e8, "100 Mbit/s"), (1.25e9, "1.25 Gbit/s")]
)
def test_readable_rates(rate_bps: float, text: str) -> None:
    assert readable_bps(rate_bps) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01234, "0.0123 s"), (119, "119 s"), (120, "2.0 min"), (7200, "2.0 h"), (180_000, "2.1 days")],
)
def test_readable_seconds(seconds: float, text: str) -> None:
    assert readable_s(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.34561, "2.3456"),
        (0.0, "0.0000"),
        (-0.5, "-0.5000"),
        (9999.0, "9999.0000"),
        (12345.6, "12,346"),
        (1.08e13, "1.08 x 10^13"),
        (-1e6, "-1.00 x 10^6"),
        (3.2e-6, "3.20 x 10^-6"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_readable_numbers(value: float, text: str) -> None:
    assert readable_number(value) == text


def test_readable_seconds_of_a_moment() -> None:
    assert (readable_s(25e-6), readable_s(0.0)) == ("25 us", "0 s")
