"""The arithmetic of bench_secure, what it takes for the stated bytes, and what it counts and sends."""

from __future__ import annotations

import socket
from argparse import Namespace
from typing import Any

import pytest
import torch

from benchmarks.harness.results import REPOSITORY
from benchmarks.harness.workers import RunFailedError
from benchmarks.secure import figures, loss, peers
from benchmarks.secure.cost import MODELS
from benchmarks.secure.federation import FILE_NAME, new_federation, site_name
from benchmarks.secure.flower import VERSION
from benchmarks.secure.frames import receive, send
from benchmarks.secure.job import counted, figures_of_all
from benchmarks.secure.stated import facts_bytes, secure_bytes, shard_bytes, values_bytes
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.planning.traffic import traffic_of_clients
from lightning_parablock.server.secure import site
from lightning_parablock.settings import SecureAggregation, Settings
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.membership import require_joinable
from lightning_parablock.site_kit.roster import Roster


def test_bytes_of_a_message_are_those_of_the_page() -> None:
    assert [values_bytes(scalars, 1) for scalars in (1, 4, 5)] == [4, 4, 8]
    assert [values_bytes(scalars, 2) for scalars in (1, 2, 3)] == [4, 4, 8]
    assert [facts_bytes(scalars) for scalars in (1, 1024, 1025)] == [12, 12, 16]
    # Two messages; in a first exchange their facts travel in two more, with a header each.
    assert shard_bytes([1024, 2048], 1, is_first=False) == (64 + 1024 + 12) + (64 + 2048 + 16)
    assert shard_bytes([1024, 2048], 1, is_first=True) == (64 + 12) + (64 + 1024) + (64 + 16) + (64 + 2048)


@pytest.mark.parametrize("topology", ["star", "sharded"])
@pytest.mark.parametrize("bytes_per_value", [1, 2])
@pytest.mark.parametrize("numel", [5, 3 * 1024, 1_000_003])
def test_stated_bytes_are_those_of_the_plan(topology: Any, bytes_per_value: int, numel: int) -> None:
    settings = Settings(local_steps=1, topology=topology, aggregation=SecureAggregation(bytes_per_value))
    planned = [(one.upload_bytes, one.download_bytes) for one in traffic_of_clients(numel, 3, settings)]
    assert secure_bytes(numel, 3, topology, settings.chunk_bytes, bytes_per_value, is_first=False) == planned


def run(round_s: float, upload_bytes: int, stated: tuple[int, int] | None) -> dict[str, Any]:
    """Three rounds of one client, of blocks a, b and a, which compute half of the time."""
    starts = [index * round_s for index in range(3)]
    columns = {
        "start_s": starts,
        "exchange_start_s": [start + round_s / 2 for start in starts],
        "exchange_end_s": [start + round_s for start in starts],
        "compute_s": [round_s / 2] * 3,
        "upload_bytes": [upload_bytes] * 3,
        "download_bytes": [9] * 3,
    }
    facts = {"blocks": ["a", "b", "a"], "link_sent_bytes": [300]}
    return facts | {"clients": [columns], "stated_bytes": stated and [[stated]] * 3}


def test_figures_of_a_pair() -> None:
    found = figures.cost_figures({"baseline": run(2.0, 10, None), "secure": run(3.0, 11, (11, 9))})
    assert (found["baseline_round_s"], found["secure_round_s"], found["round_s_ratio"]) == (2.0, 3.0, 1.5)
    assert (found["baseline_later_round_s"], found["secure_later_round_s"]) == (2.0, 3.0)
    assert (found["upload_bytes_ratio"], found["download_bytes_ratio"]) == (1.1, 1.0)
    assert found["baseline_exchange_over_compute"] == 1.0
    assert found["secure_link_sent_bytes"] == 100.0
    assert found["secure_bytes_not_as_stated"] == 0


def test_a_byte_too_many_in_either_direction_is_counted() -> None:
    assert figures.not_as_stated(run(3.0, 11, (12, 9))) == 3
    assert figures.not_as_stated(run(3.0, 11, (11, 8))) == 3
    odd = run(3.0, 11, (11, 9))
    odd["clients"][0]["download_bytes"][1] += 1
    assert figures.not_as_stated(odd) == 1


def test_medians_over_pairs_and_the_ratio_of_round_times() -> None:
    pairs = [{"baseline": run(2.0, 10, None), "secure": run(s, 11, (11, 9))} for s in (1.0, 2.0, 4.0)]
    found = figures.cost_summary([figures.cost_figures(pair) for pair in pairs])
    assert found["medians"]["secure_round_s"] == 2.0
    assert found["round_s"] == {"ratio": 1.0, "interval": [0.5, 2.0], "pairs": 3}


def test_the_first_rounds_of_blocks_are_left_out_but_never_all() -> None:
    late = run(2.0, 10, None) | {"blocks": ["a", "a", "b"]}
    late["clients"][0]["start_s"] = [0.0, 7.0, 9.0]
    assert figures.cost_figures({"baseline": late, "secure": run(2.0, 10, (10, 9))})["baseline_later_round_s"] == 2.0


def trained(method: str, seed: int, loss: float, values: int = 0, saturated: int = 0) -> dict[str, Any]:
    """A run on GSM8K."""
    counts = {"values": values, "saturated": saturated}
    return {"method": method, "seed": seed, "failed": None, "held_out_loss": [(0, 9.0), (4, loss)], **counts}


def test_losses_are_compared_at_the_same_seed() -> None:
    runs = [
        trained("none", 0, 2.0),
        trained("none", 1, 4.0),
        trained("secure, 1 byte", 0, 1.0, 100, 1),
        trained("secure, 1 byte", 1, 5.0, 300, 7),
        trained("secure, 1 byte", 2, 5.0, 300, 300),  # there is nothing to compare it with
        {"method": "secure, 2 bytes", "seed": 0, "failed": "a message"},
    ]
    found = figures.loss_figures(runs, "none")
    assert found == {"secure, 1 byte": {"over_reference": {"0": 0.5, "1": 1.25}, "saturated_share": 0.02}}


def test_one_aggregation_is_the_median_without_the_first_of_each_run() -> None:
    runs = [
        {"seconds": [9.0, 1.0, 2.0], "upload_bytes": [1, 5], "download_bytes": [2, 1]},
        {"seconds": [9.0, 3.0], "upload_bytes": [4, 3], "download_bytes": [2, 6]},
    ]
    assert figures.peer_figures(runs) == {"seconds": 2.0, "upload_bytes": 4.5, "download_bytes": 4.0, "runs": 2}


def test_a_second_start_makes_what_is_missing_or_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, saved = list[tuple[str, int]](), list[int]()

    def run(_options: Any, _workers: Any, facts: dict[str, Any]) -> dict[str, Any]:
        made.append((facts["method"], facts["seed"]))
        return {"new": True}

    monkeypatch.setattr(loss, "_run", run)
    state: dict[str, Any] = {"none, seed 0": {"failed": None}, "secure, 1 byte, seed 0": {"failed": "a message"}}
    loss.train(Namespace(size="quick"), state, lambda: saved.append(len(state)))
    assert made == [("secure, 1 byte", 0), ("secure, 2 bytes", 0)]
    assert saved == [2, 3]
    assert [row["failed"] for row in state.values()] == [None] * 3 and "new" not in state["none, seed 0"]


def test_systems_take_turns_and_runs_that_there_are_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[str]()

    def run(_options: Any, system: str, _rate_mbit: float) -> dict[str, Any]:
        made.append(system)
        if len(made) == 1:
            raise RunFailedError("a message")
        return {"seconds": [9.0, 1.0], "upload_bytes": [1], "download_bytes": [1]}

    monkeypatch.setattr(peers, "_run", run)
    state: dict[str, Any] = {}
    options = Namespace(peer_rates="100", repeats=2)
    peers.measure(options, state, lambda: None)
    assert made == [*peers.SYSTEMS, *peers.SYSTEMS[::-1]]
    peers.measure(options, state, lambda: None)  # the one that has failed is made up for
    assert made[2 * len(peers.SYSTEMS) :] == peers.SYSTEMS[:1]
    assert {(len(row["runs"]), row["failed"]) for row in state.values()} == {(2, None)}


def test_saturated_values_are_counted_where_sites_round_them() -> None:
    original, into = site.quantize, torch.empty(2, 8, dtype=torch.int8)
    with counted() as count:
        for row, size in zip(into, (1.0, 5.0), strict=True):
            site.quantize(size * torch.ones(8), torch.ones(1), 3, row)
    assert (count.values, count.saturated) == (16, 8)
    assert torch.equal(into, torch.tensor([[1] * 8, [3] * 8], dtype=torch.int8))
    assert site.quantize is original


def test_held_out_losses_are_of_all_sites_also_with_secure_sums() -> None:
    """They are compared with those of other arms, which are."""
    with figures_of_all():
        assert not ParaBlockStrategy(aggregation="secure")._figures.keep()
    assert ParaBlockStrategy(aggregation="secure")._figures.keep()


def test_all_sites_of_a_new_federation_may_join() -> None:
    with new_federation(3) as folder:
        roster = Roster.read(folder / FILE_NAME)
        for rank in range(3):
            name = site_name(rank)
            assert require_joinable(roster, Identity.read(folder / name)).name == name
    assert not folder.exists()


def test_messages_arrive_as_they_were_sent() -> None:
    one, other = socket.socketpair()
    with one, other:
        for message in (b"", b"a" * 1000, b"\0"):
            send(one, message)
        assert [receive(other) for _ in range(3)] == [b"", b"a" * 1000, b"\0"]
        one.sendall((1 << 40).to_bytes(8, "little"))
        with pytest.raises(ConnectionError, match="1,099,511,627,776 bytes is announced"):
            receive(other)


def test_a_connection_that_ends_within_a_message_is_an_error() -> None:
    one, other = socket.socketpair()
    with other:
        with one:
            one.sendall((4).to_bytes(8, "little") + b"ab")
        with pytest.raises(ConnectionError, match="after 2 of 4 bytes"):
            receive(other)


def test_the_flower_that_is_installed_is_the_one_that_is_named() -> None:
    assert f"pip install flwr=={VERSION}\n" in (REPOSITORY / "Makefile").read_text()


def test_the_sizes_of_the_blocks_of_smollm2_are_known() -> None:
    hidden, key_value, feed_forward = 576, 192, 1536
    layer = 2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * feed_forward + 2 * hidden
    assert MODELS["real"]["block_scalars"] == 4 * layer
