"""On a CUDA device: step overhead over plain Lightning, memory of large models, NCCL, and staging through the host.

Weights are random, in bfloat16. Overhead: plain Lightning and ParaBlock with one client alternate step by step.
Memory: models of 1B and 8B parameters; ParaBlock, AdamW on all parameters, and LoRA. NCCL: one client, and two clients
that share the GPU where NCCL allows it. Staging: two clients that share the GPU exchange over gloo, through host
memory. Without CUDA nothing is measured or written.

    python -m benchmarks.bench_gpu
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.harness.bootstrap import ratio_with_interval
from benchmarks.harness.pairs import measure_pairs
from benchmarks.harness.publish import parser, publish
from benchmarks.harness.run_figures import run_of
from benchmarks.harness.turn_jobs import JOBS
from benchmarks.harness.turns import WARM_UP_STEPS, round_pairs, take_turns
from benchmarks.harness.workers import Workers, attempt
from lightning_parablock.planning.memory import ModelSize, memory_parts, total_bytes
from lightning_parablock.settings import Settings

QUESTION = "gpu"
LIMIT_S = 900.0
METHODS = ("parablock", "adamw", "lora")
SHARING = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
"""Allows two ranks per GPU with newer versions of NCCL; older ones refuse."""


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **other: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    } | other


ARCHITECTURES = {
    "1B": _llama(2048, 8192, 16, 32, 8, tie_word_embeddings=True),
    "8B": _llama(4096, 14336, 32, 32, 8, tie_word_embeddings=False),
    "tiny": _llama(64, 128, 4, 4, 2, tie_word_embeddings=True) | {"vocab_size": 256},
}


def main() -> None:
    """Measure, if there is a device, and write the result."""
    made = parser(__doc__)
    made.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"], help="cpu only checks that the benchmark runs"
    )
    made.add_argument(
        "--shapes",
        default="1B,8B",
        help=f"models whose memory is measured, comma-separated list of {', '.join(ARCHITECTURES)}",
    )
    made.add_argument("--shape", default="1B", help="model for all other measurements")
    made.add_argument("--tokens", type=int, default=512, help="tokens per sequence; one sequence per step")
    made.add_argument("--rounds", type=int, default=12, help="rounds per run")
    made.add_argument("--local-steps", type=int, default=8, help="local steps per round (K)")
    made.add_argument("--launches", type=int, default=5, help="pairs of alternating processes, and pairs of runs")
    options = made.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu: no CUDA device at hand, nothing was measured")
        return
    if options.device == "cpu":
        options.quick, options.shapes, options.shape, options.tokens = True, "tiny", "tiny", 16
    if options.quick:
        options.shapes, options.rounds, options.launches = options.shapes.split(",")[0], 3, 1
    values = {
        "overhead": attempt(_overhead, options),
        "memory": [_memory(options, shape, method) for shape in options.shapes.split(",") for method in METHODS],
        "nccl": {str(n): attempt(_nccl, options, n) for n in (1, 2)},
        "staging": attempt(_pairs, options, "gloo", 2),
        "copies_gb_s": attempt(_copies, options),
    }
    publish(
        QUESTION,
        options,
        configuration={"architectures": ARCHITECTURES},
        seeds=[0],
        network={"hosts": 1, "links": "loopback, not shaped"},
        values=values,
    )


def _model(options: argparse.Namespace, shape: str, blocks: Any) -> dict[str, Any]:
    place = {"device": options.device, "tokens": options.tokens}
    return {"kind": "shape", "architecture": ARCHITECTURES[shape], "blocks": blocks} | place


def _trainer(options: argparse.Namespace) -> dict[str, str]:
    return {"accelerator": "gpu" if options.device == "cuda" else "cpu", "precision": "bf16-true"}


def _last_layer(shape: str) -> list[str]:
    return [rf"layers\.{ARCHITECTURES[shape]['num_hidden_layers'] - 1}\."]


def _overhead(options: argparse.Namespace) -> dict[str, Any]:
    plan: dict[str, Any] = {"model": _model(options, options.shape, _last_layer(options.shape))}
    plan |= {"local_steps": options.local_steps, "trainer": _trainer(options)}
    plan["steps"] = WARM_UP_STEPS + options.rounds * options.local_steps + 1
    launches = [take_turns(JOBS, plan, limit_s=LIMIT_S) for _ in range(options.launches)]
    pairs = [pair for launch in launches for pair in round_pairs(launch, options.local_steps)]
    found = ratio_with_interval(pairs)
    print("strategy over plain Lightning:", found, flush=True)
    return {"ratio": found, "step_s": launches}


def _memory(options: argparse.Namespace, shape: str, method: str) -> dict[str, Any]:
    """Peak memory of one method; ParaBlock visits every block in order, then the first ones again."""
    layers = ARCHITECTURES[shape]["num_hidden_layers"]
    plan = {
        "method": method,
        "model": _model(options, shape, "layers"),
        "strategy": {"local_steps": 1, "block_order": "sequential", "seed": 0},
        "trainer": _trainer(options),
        "rounds": layers + 4 if method == "parablock" else 3,
    }
    with Workers(1, linked=False, pin=False) as workers:
        found = attempt(workers.first_answer, "benchmarks.gpu.job:memory", plan, limit_s=LIMIT_S)
    if method == "parablock" and not found["failed"]:
        found |= _formula(found)
    print(shape, method, {name: v for name, v in found.items() if not isinstance(v, list)}, flush=True)
    return {"shape": shape, "method": method} | found


def _formula(found: dict[str, Any]) -> dict[str, float]:
    size = ModelSize(tuple(found["numels"]), found["weights_bytes"], weight_bytes=2)
    parts = memory_parts(size, 1, Settings(local_steps=1, delay_steps=1))
    total = total_bytes(parts, on_device=True) + max(found["activations_bytes"])
    return {"formula_bytes": total, "peak_over_formula": found["peak_bytes"] / total}


def _nccl(options: argparse.Namespace, clients: int) -> dict[str, Any]:
    return _pairs(options, "nccl" if options.device == "cuda" else "gloo", clients)


def _pairs(options: argparse.Namespace, backend: str, clients: int) -> dict[str, Any]:
    """Pairs of runs at delay 0 and K; all clients share the GPU."""
    with Workers(clients, linked=False, pin=False, env=SHARING) as workers:
        found = measure_pairs(lambda d: _run(options, workers, backend, d), options.local_steps, options.launches)
    print(backend, clients, "clients:", found["medians"], flush=True)
    return {"backend": backend} | found


def _run(options: argparse.Namespace, workers: Workers, backend: str, delay_steps: int) -> dict[str, Any]:
    strategy: dict[str, Any] = {"local_steps": options.local_steps, "delay_steps": delay_steps}
    strategy["process_group_backend"] = backend
    plan = {"model": _model(options, options.shape, "layers"), "rounds": options.rounds, "strategy": strategy}
    answers = workers.run("benchmarks.harness.fits:fit", plan | {"trainer": _trainer(options)}, rate_mbit=None)
    return run_of(answers, delay_steps=delay_steps)


def _copies(options: argparse.Namespace) -> dict[str, Any]:
    plan = {"device": options.device, "megabytes": 256, "repeats": 9}
    with Workers(1, linked=False, pin=False) as workers:
        return workers.first_answer("benchmarks.gpu.job:copies", plan)


if __name__ == "__main__":
    main()
