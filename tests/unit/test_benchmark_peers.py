"""The table of peers: what it makes of raw runs, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peers.by_torchft import fragments_of
from benchmarks.peers.figures import curve, round_s, table
from benchmarks.peers.methods import METHODS, SIZES, round_steps
from benchmarks.peers.shown import markdown


def job(method: str, rate: float = 1e-4, local_steps: int = 8) -> dict[str, Any]:
    return {"method": method, "size": "whole", "learning_rate": rate, "local_steps": local_steps}


def point(step: int, total: float, *, sent_bytes: int = 0, count: int = 10, drained: bool = False) -> dict[str, Any]:
    return {"step": step, "total": total, "count": count, "sent_bytes": sent_bytes, "drained": drained}


def trained(method: str, losses: dict[int, float], **of_job: Any) -> dict[str, Any]:
    points = [point(step, 10 * loss, sent_bytes=1000 * step) for step, loss in losses.items()]
    return {"job": job(method, **of_job), "clients": [{"points": points}, {"points": points}]}


def timed(method: str, link: str, *stamps_s: list[float], local_steps: int = 8) -> dict[str, Any]:
    clients = [{"stamps_s": stamps} for stamps in stamps_s]
    return {"job": job(method, local_steps=local_steps), "link": link, "clients": clients}


def test_the_held_out_loss_is_the_mean_over_the_tokens_of_all_clients() -> None:
    run = {
        "job": job("parablock"),
        "clients": [
            {"points": [point(0, 30.0, count=10), point(8, 12.0, sent_bytes=7, drained=True)]},
            {"points": [point(0, 30.0, count=20), point(8, 8.0, sent_bytes=9, drained=True)]},
        ],
    }
    first, last = curve(run)
    assert (first["loss"], first["rounds"]) == (2.0, 0)
    assert (last["loss"], last["sent_bytes"]) == (1.0, 8)
    assert last["rounds"] == 2  # one of eight steps, and the drain


def test_seconds_a_round_are_those_of_the_slowest_client_without_the_first_round_of_an_overlap() -> None:
    rounds_of_8 = [float(s) for s in range(9)]  # a second a step
    stamps = [*rounds_of_8, *[8 + 2.0 * s for s in range(1, 9)]]
    slower = [*rounds_of_8, *[8 + 3.0 * s for s in range(1, 9)]]
    assert round_s(timed("parablock", "1gbit", stamps, slower)) == (24.0, 0.0)


def test_steps_that_were_not_timed_are_added_to_a_blocking_round() -> None:
    # FedAvg's rounds have 16 steps; 3 were timed: 2 s each, the last one with an exchange of 40 s.
    assert round_s(timed("fedavg", "1gbit", [0.0, 2.0, 4.0, 46.0], local_steps=3)) == (46.0 + 13 * 2.0, 26.0)


def test_ddp_has_a_round_a_step() -> None:
    assert round_s(timed("ddp", "1gbit", [0.0, 5.0, 9.0], local_steps=1)) == (4.5, 0.0)


def test_a_row_is_rounds_to_the_target_times_seconds_a_round() -> None:
    training = [
        trained("fedbcd", {0: 2.0, 8: 1.2, 16: 0.9, 24: 0.8}, rate=1e-4),
        trained("fedbcd", {0: 2.0, 8: 1.5, 16: 1.4, 24: 1.3}, rate=3e-4),
        {"job": job("ddp"), "failed": "out of memory"},
    ]
    timing = [timed("fedbcd", "20mbit", [float(s) * seconds for s in range(9)]) for seconds in (1.0, 9.0, 2.0)]
    (row,) = table(training, [*timing, {"job": job("fedbcd"), "link": "1gbit", "failed": "no"}], target=1.0)
    assert (row["method"], row["learning_rate"], row["final_loss"]) == ("fedbcd", 1e-4, 0.8)
    assert row["final_loss_by_learning_rate"] == {"0.0001": 0.8, "0.0003": 1.3}
    assert (row["rounds_to_target"], row["bytes_to_target"]) == (2, 16000)
    assert row["round_s"] == {"20mbit": 16.0}
    assert row["seconds_to_target"] == {"20mbit": 32.0}
    assert "| FedBCD | not timed | not timed | 16.0 x 2 = 32 |" in markdown([row])


def test_a_target_that_was_not_reached_has_no_seconds() -> None:
    stamps = [float(s) for s in range(9)]
    (row,) = table([trained("fedbcd", {0: 2.0, 8: 1.2})], [timed("fedbcd", "1gbit", stamps)], target=1.0)
    assert (row["rounds_to_target"], row["seconds_to_target"]) == (None, {})
    assert "not reached" in markdown([row])


@pytest.mark.parametrize("size", SIZES.values())
def test_every_evaluation_and_the_end_fall_on_the_end_of_a_round(size: Any) -> None:
    for method in METHODS.values():
        steps = round_steps(method, size)
        assert size.steps % steps == 0
        assert max(steps, size.evaluate_every_steps) % steps == 0


def test_fragments_hold_every_parameter_once_and_are_about_equal() -> None:
    config = LlamaConfig(
        vocab_size=96, hidden_size=8, intermediate_size=16, num_hidden_layers=10, num_attention_heads=2, head_dim=4
    )
    network = LlamaForCausalLM(config)
    network.lm_head.weight = network.model.embed_tokens.weight  # tied, as SmolLM2's
    fragments = fragments_of(network, 4)
    held = [id(parameter) for fragment in fragments for parameter in fragment.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in network.parameters())
    sizes = [_size(fragment) for fragment in fragments]
    assert all(abs(size - sum(sizes) / 4) <= _size(network.model.layers[0]) for size in sizes)
    assert [_size(fragment) for fragment in fragments_of(network, 1)] == [_size(network)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
