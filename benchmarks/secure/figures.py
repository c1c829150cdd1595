"""The arithmetic of bench_secure: pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from benchmarks.harness.bootstrap import ratio_with_interval
from benchmarks.harness.run_figures import Run, compute_s, exchange_s, round_s, wall_s

Pair = dict[str, Run]
"""The runs "baseline" and "secure"."""


def cost_figures(pair: Pair) -> dict[str, float]:
    """Seconds per round of a pair, with the drain; bytes per round and client; and how far they are from the stated."""
    rows = {name: _run_figures(run) for name, run in pair.items()}
    found = {f"{name}_{figure}": value for name, row in rows.items() for figure, value in row.items()}
    found |= {f"{figure}_ratio": rows["secure"][figure] / value for figure, value in rows["baseline"].items()}
    return found | {"secure_bytes_not_as_stated": not_as_stated(pair["secure"])}


def _run_figures(run: Run) -> dict[str, float]:
    rounds = len(compute_s(run))
    return {
        "round_s": wall_s(run) / rounds,
        # Without the first exchanges of the blocks, which take a stage more, and without the drain.
        "later_round_s": median(round_s(run)[_first_later_round(run) :]),
        "compute_s": fmean(compute_s(run)),
        "exchange_s": fmean(exchange_s(run)),
        "exchange_over_compute": sum(exchange_s(run)) / sum(compute_s(run)),
        "upload_bytes": fmean(fmean(client["upload_bytes"]) for client in run["clients"]),
        "download_bytes": fmean(fmean(client["download_bytes"]) for client in run["clients"]),
        "link_sent_bytes": fmean(run["link_sent_bytes"]) / rounds,
    }


def _first_later_round(run: Run) -> int:
    """The round after that in which the last new block was trained; at most the last but one."""
    newest = max(run["blocks"].index(block) for block in set(run["blocks"]))
    return min(newest + 1, len(run["blocks"]) - 2)


def not_as_stated(run: Run) -> int:
    """In how many rounds, over all clients, the bytes sent or received were others than stated."""
    return sum(
        (upload, download) != tuple(stated[client])
        for client, columns in enumerate(run["clients"])
        for upload, download, stated in zip(
            columns["upload_bytes"], columns["download_bytes"], run["stated_bytes"], strict=True
        )
    )


def cost_summary(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians over the pairs, and the ratio of the round times with its interval."""
    medians = {name: median(row[name] for row in rows) for name in rows[0]}
    pairs = [(row["secure_round_s"], row["baseline_round_s"]) for row in rows]
    return {"medians": medians, "round_s": ratio_with_interval(pairs)}


def loss_figures(runs: Sequence[Mapping[str, Any]], reference: str) -> dict[str, dict[str, Any]]:
    """For each other method, by seed: final loss over that of ``reference``; and the share of saturated values."""
    done = [run for run in runs if not run["failed"]]
    final = {(run["method"], run["seed"]): run["held_out_loss"][-1][1] for run in done}
    found: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(run["method"] for run in done):
        mine = [run for run in done if run["method"] == method and (reference, run["seed"]) in final]
        values = sum(run["values"] for run in mine)
        if method != reference and mine:
            found[method] = {
                "over_reference": {
                    str(r["seed"]): final[method, r["seed"]] / final[reference, r["seed"]] for r in mine
                },
                "saturated_share": sum(run["saturated"] for run in mine) / values if values else 0.0,
            }
    return found


def peer_figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over runs of one system: seconds of an aggregation, and bytes of the busiest client and of its link."""
    return {
        "seconds": median(second for run in runs for second in run["seconds"][1:]),
        "upload_bytes": median(max(run["upload_bytes"]) for run in runs),
        "download_bytes": median(max(run["download_bytes"]) for run in runs),
        "runs": len(runs),
    }
