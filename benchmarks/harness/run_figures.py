"""How long runs took, how long they would ideally have taken, and what accounts for the difference.

Pure arithmetic on round records. All hosts are on one machine, so all times come from one clock. A run is
``{"delay_steps", "rate_mbit", "clients"}`` with one :data:`benchmarks.harness.fits.Columns` per client. C_t is the
computation of round t on its slowest client, M_t its exchange, from the last client's submission to the last client's
commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

Run = dict[str, Any]

TIMES = ("start_s", "end_s", "exchange_start_s", "exchange_ready_s", "exchange_end_s")
KEPT = (*TIMES, "compute_s", "exchange_s", "exposed_s", "wait_peer_s", "upload_bytes", "download_bytes")


def run_of(answers: Sequence[dict[str, Any]], **facts: Any) -> Run:
    """A run from the clients' answers; times are relative to the start of its first round."""
    zero_s = min(answer["rounds"]["start_s"][0] for answer in answers)
    return {**facts, "clients": [_shifted(answer["rounds"], zero_s) for answer in answers]}


def _shifted(columns: dict[str, list[Any]], zero_s: float) -> dict[str, list[Any]]:
    return {
        name: [round(value - zero_s, 6) for value in columns[name]] if name in TIMES else columns[name] for name in KEPT
    }


def compute_s(run: Run) -> list[float]:
    """C_t of each round."""
    return _slowest(run, "compute_s")


def exchange_s(run: Run) -> list[float]:
    """M_t of each round."""
    ends, starts = _slowest(run, "exchange_end_s"), _slowest(run, "exchange_start_s")
    return [end - start for end, start in zip(ends, starts, strict=True)]


def wall_s(run: Run) -> float:
    """From the first round's start to the last commit."""
    return max(_slowest(run, "exchange_end_s")) - min(client["start_s"][0] for client in run["clients"])


def round_s(run: Run) -> list[float]:
    """For each round but the last, the time from its start on the slowest client to the start of the next one."""
    starts = _slowest(run, "start_s")
    return [after - before for before, after in pairwise(starts)]


def ideal_blocking_s(compute: Sequence[float], exchange: Sequence[float]) -> float:
    """The sum of C_t + M_t."""
    return sum(compute) + sum(exchange)


def ideal_parallel_s(compute: Sequence[float], exchange: Sequence[float]) -> float:
    """The sum of max(C_t, M_(t-1)); the last exchange, the drain, overlaps with no computation."""
    return sum(max(c, m) for c, m in zip([*compute, 0.0], [0.0, *exchange], strict=True))


def exposed_s(run: Run) -> list[float]:
    """For each round's exchange, the time that clients spent waiting for it: the mean over the clients.

    Counted from the last client's submission, like M_t; waiting before that is attributed to the slower client.
    """
    submitted_s = _slowest(run, "exchange_start_s")
    return [
        fmean(
            min(client["exposed_s"][t] + client["wait_peer_s"][t], max(0.0, client["exchange_end_s"][t] - last_s))
            for client in run["clients"]
        )
        for t, last_s in enumerate(submitted_s)
    ]


def hidden_share(run: Run, *, with_drain: bool) -> float:
    """1 - exposed / exchange, over all rounds or only over those before the drain, which nothing can hide."""
    drained = 0 if with_drain else 1
    last = len(compute_s(run)) - drained
    return 1 - sum(exposed_s(run)[:last]) / sum(exchange_s(run)[:last])


def seconds_spent(run: Run) -> dict[str, float]:
    """What a round's seconds are spent on, averaged over the clients; the parts add up to the wall time per round.

    ``compute_s``; ``exposed_s`` of all exchanges but the last; ``drain_s`` of the last; ``wait_peer_s``; and
    ``between_s``, the remainder: what the strategy does between rounds.
    """
    n, exposed = len(compute_s(run)), exposed_s(run)
    still = fmean(sum(client["exposed_s"]) + sum(client["wait_peer_s"]) for client in run["clients"])
    spent = {
        "compute_s": fmean(sum(client["compute_s"]) for client in run["clients"]),
        "exposed_s": sum(exposed[:-1]),
        "drain_s": exposed[-1],
        "wait_peer_s": still - sum(exposed),
    }
    spent["between_s"] = wall_s(run) - sum(spent.values())
    return {name: value / n for name, value in spent.items()}


def figures(blocking: Run, parallel: Run) -> dict[str, float]:
    """Seconds per round and ratios of one pair; the ideals use the blocking run's C and M.

    ``own_ideal`` uses the parallel run's own C and M. Time lost relative to it was spent waiting; its excess over the
    ideal is due to computation or exchange being slower when they overlap.
    """
    c, m = compute_s(blocking), exchange_s(blocking)
    n, best, best_blocking = len(c), ideal_parallel_s(c, m), ideal_blocking_s(c, m)
    own = ideal_parallel_s(compute_s(parallel), exchange_s(parallel))
    return {
        "compute_round_s": sum(c) / n,
        "exchange_round_s": sum(m) / n,
        "exchange_over_compute": sum(m) / sum(c),
        "blocking_round_s": wall_s(blocking) / n,
        "parablock_round_s": wall_s(parallel) / n,
        "ideal_blocking_round_s": best_blocking / n,
        "ideal_parablock_round_s": best / n,
        "own_ideal_parablock_round_s": own / n,
        "speedup": wall_s(blocking) / wall_s(parallel),
        "ideal_speedup": best_blocking / best,
        "blocking_over_ideal": wall_s(blocking) / best_blocking,
        "parablock_over_ideal": wall_s(parallel) / best,
        "parablock_over_own_ideal": wall_s(parallel) / own,
        "hidden_share": hidden_share(parallel, with_drain=True),
        "hidden_share_before_drain": hidden_share(parallel, with_drain=False),
    }


def _slowest(run: Run, field: str) -> list[float]:
    return [max(values) for values in zip(*(client[field] for client in run["clients"]), strict=True)]
