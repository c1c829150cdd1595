"""``blocks: auto`` on several budgets: is the peak within the budget, and is a round as long as the plan says?

The budget is for everything but activations, which are measured by a plain loop over the blocks that were chosen. The
plan has the speed that ``plan --probe`` measures and the link's nominal rate; a round is then max(C_t, M_(t-1)).
"""

from __future__ import annotations

import argparse
from statistics import fmean
from typing import Any

from benchmarks.harness.run_figures import round_s, run_of
from benchmarks.harness.workers import Workers
from lightning_parablock.planning.memory import ModelSize, memory_parts
from lightning_parablock.planning.timing import NOMINAL_GOODPUT, Links, exchange_s, round_times
from lightning_parablock.settings import Settings

CLIENTS = 2
LOCAL_STEPS, COMPRESSION = 8, "int8"
PROBE_S = 20.0
FIRST_ROUNDS = 2
"""Left out of the mean: the first has no exchange beside it, and allocates what later ones use again."""


def measure(options: argparse.Namespace, budget_mb: float) -> dict[str, Any]:
    """One run of two clients, whose links have the rate that the options give."""
    model = {"kind": "smollm2", "layers": options.layers, "tokens": options.tokens, "batch_size": options.batch_size}
    strategy = {"blocks": "auto", "memory": 1e6 * budget_mb, "local_steps": LOCAL_STEPS, "compression": COMPRESSION}
    strategy |= {"seed": 0}
    with Workers(CLIENTS) as workers:
        told = {"model": model, "processes": CLIENTS, "probe_s": PROBE_S}
        paces = [answer["flop_per_s"] for answer in workers.run("benchmarks.memory.job:pace", told, rate_mbit=None)]
    with Workers(CLIENTS) as workers:  # fresh processes, whose memory nothing has used
        told = {"method": "parablock", "model": model, "rounds": options.budget_rounds, "strategy": strategy}
        clients = workers.run("benchmarks.memory.job:within_budget", told, rate_mbit=options.rate_mbit)
    with Workers(1, linked=False) as workers:
        told = {"model": model, "strategy": {"blocks": len(clients[0]["numels"])}}
        (loop,) = workers.run("benchmarks.memory.job:activations", told, rate_mbit=None)
    run = run_of(clients, delay_steps=LOCAL_STEPS)
    facts = {name: clients[0][name] for name in ("numels", "weights_bytes", "step_flops")}
    blocks = [clients[0]["names"].index(name) for name in clients[0]["rounds"]["block"]]
    peaks = [client["training_peak_bytes"] for client in clients]
    found = {"budget_bytes": 1e6 * budget_mb, **facts, "flop_per_s": min(paces), "blocks": blocks, "run": run}
    found |= {"peak_bytes": peaks, "activations_bytes": max(loop["activations_bytes"][:-1])}
    return found | figures(found, options.rate_mbit)


def figures(found: dict[str, Any], rate_mbit: float) -> dict[str, Any]:
    """Formula and peak without activations over the budget; seconds per round, measured and by the plan."""
    budget_bytes, numels = found["budget_bytes"], tuple(found["numels"])
    settings = Settings(local_steps=LOCAL_STEPS, delay_steps=LOCAL_STEPS, compression=COMPRESSION)
    parts = memory_parts(ModelSize(numels, found["weights_bytes"]), CLIENTS, settings)
    rate_bps = NOMINAL_GOODPUT * 1e6 * rate_mbit
    links = Links(rate_bps, rate_bps)
    computes_s = [LOCAL_STEPS * found["step_flops"][block] / found["flop_per_s"] for block in found["blocks"]]
    exchanges_s = [exchange_s(numels[block], CLIENTS, settings, links) for block in found["blocks"]]
    same = slice(FIRST_ROUNDS - 1, -1)  # a round is as long as the exchange before it at least
    planned_s = round_times(computes_s[same], exchanges_s[same]).parablock_s
    measured_s = fmean(round_s(found["run"])[FIRST_ROUNDS:])
    return {
        "formula_over_budget": sum(part.size_bytes for part in parts) / budget_bytes,
        "peak_over_budget": (max(found["peak_bytes"]) - found["activations_bytes"]) / budget_bytes,
        "round_s": measured_s,
        "planned_round_s": planned_s,
        "round_over_plan": measured_s / planned_s,
    }
