"""Bytes, counted at the socket: 2 (N - 1) S q a round over all ranks in either topology, plus the stated headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_parablock.transport.chunks import HEADER_BYTES
from tests.distributed.worker_bytes import BLOCK_SIZES, CHUNK_BYTES, N_ROUNDS
from tests.support.launch import run_ranks

FP32_BYTES = 4
GLOO_PREAMBLE_BYTES = 48
"""gloo 's own header (transport/tcp: six 8-byte numbers). Each message costs two, one in front of the data and one from
the receiver that says that it is ready, and a third where the sender asked before the receiver was."""

Counts = dict[str, list[dict[str, Any]]]  # topology -> what each rank counted


@pytest.fixture(scope="module", params=[2, 3])
def counts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Counts]:
    n_ranks: int = request.param
    folder: Path = tmp_path_factory.mktemp("meeting")
    outputs = run_ranks(n_ranks, ["-m", "tests.distributed.worker_bytes", str(folder)])
    found: Counts = {"sharded": [], "star": []}
    for output in outputs:
        for line in output.splitlines():
            if line.startswith("COUNT "):
                counted = json.loads(line.removeprefix("COUNT "))
                found[counted["topology"]].append(counted)
    assert all([counted["rank"] for counted in ranks] == list(range(n_ranks)) for ranks in found.values())
    return n_ranks, found


EACH_TOPOLOGY = pytest.mark.parametrize("topology", ["sharded", "star"])


def scalars_of_round(t: int) -> int:
    return BLOCK_SIZES[t % len(BLOCK_SIZES)]  # sequential


def total(ranks: list[dict[str, Any]], name: str) -> int:
    return sum(sum(counted[name]) for counted in ranks)


@EACH_TOPOLOGY
def test_each_round_moves_the_payload_of_the_method_and_a_header_a_message(
    counts: tuple[int, Counts], topology: str
) -> None:
    n_ranks, ranks = counts[0], counts[1][topology]
    messages = [size for counted in ranks for size in counted["message_bytes"]]
    payload_bytes = [2 * (n_ranks - 1) * scalars_of_round(t) * FP32_BYTES for t in range(N_ROUNDS)]
    assert total(ranks, "upload_bytes") == sum(payload_bytes) + HEADER_BYTES * len(messages)
    assert sum(messages) == total(ranks, "upload_bytes")
    assert total(ranks, "download_bytes") == total(ranks, "upload_bytes")
    assert max(messages) == CHUNK_BYTES + HEADER_BYTES
    for t in range(N_ROUNDS):
        headers_bytes = sum(counted["upload_bytes"][t] for counted in ranks) - payload_bytes[t]
        assert headers_bytes % HEADER_BYTES == 0
        assert headers_bytes // HEADER_BYTES >= 2 * (n_ranks - 1)


@EACH_TOPOLOGY
def test_the_kernel_counted_the_same_plus_the_framing_of_gloo(counts: tuple[int, Counts], topology: str) -> None:
    ranks = counts[1][topology]
    n_messages = sum(len(counted["message_bytes"]) for counted in ranks)
    sent = sum(counted["acknowledged_bytes"] for counted in ranks)
    assert sent == sum(counted["received_bytes"] for counted in ranks)
    framing_bytes = sent - total(ranks, "upload_bytes")
    preambles, rest = divmod(framing_bytes, GLOO_PREAMBLE_BYTES)
    assert rest == 0
    assert 2 * n_messages <= preambles <= 3 * n_messages, framing_bytes / n_messages


@EACH_TOPOLOGY
def test_every_rank_by_itself_agrees_with_its_kernel(counts: tuple[int, Counts], topology: str) -> None:
    for counted in counts[1][topology]:
        sent, received = counted["upload_bytes"], counted["download_bytes"]
        n_sent = len(counted["message_bytes"])
        n_received = sum(received) // HEADER_BYTES  # no more than that
        limit_bytes = GLOO_PREAMBLE_BYTES * (2 * n_sent + 2 * n_received)
        assert 0 < counted["acknowledged_bytes"] - sum(sent) <= limit_bytes
        assert 0 < counted["received_bytes"] - sum(received) <= limit_bytes


def test_the_star_loads_its_server_and_the_shards_load_all_alike(counts: tuple[int, Counts]) -> None:
    n_ranks, by_topology = counts
    scalars = sum(scalars_of_round(t) for t in range(N_ROUNDS))
    for counted in by_topology["star"]:
        times = n_ranks - 1 if counted["rank"] == 0 else 1
        payload_bytes = times * scalars * FP32_BYTES
        assert payload_bytes < sum(counted["upload_bytes"]) < 1.05 * payload_bytes
    most = max(sum(counted["upload_bytes"]) for counted in by_topology["sharded"])
    assert most < 1.1 * 2 * (n_ranks - 1) / n_ranks * scalars * FP32_BYTES
