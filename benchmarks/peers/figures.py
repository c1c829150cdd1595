"""From raw runs to the table: curves, seconds per round on each link, and seconds and bytes to the target loss.

The network does not change the trajectory, so seconds to a loss are the rounds to it, from training, times the seconds
per round on that link, from timing.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.peers.methods import LINKS, METHODS, SIZES, round_steps

Run = Mapping[str, Any]
Point = dict[str, Any]


def curve(run: Run) -> list[Point]:
    """Held-out loss (nats per token) against steps, rounds and bytes sent per client.

    The last point may be after the drain. A drain counts as one more round, since it lasts at most as long.
    """
    a_round = run["job"]["local_steps"]
    return [
        {
            "step": points[0]["step"],
            "rounds": points[0]["step"] // a_round + points[0]["drained"],
            "loss": sum(p["total"] for p in points) / sum(p["count"] for p in points),
            "sent_bytes": statistics.mean(p["sent_bytes"] for p in points),
            "drained": points[0]["drained"],
        }
        for points in zip(*(client["points"] for client in run["clients"]), strict=True)
    ]


def round_s(run: Run) -> tuple[float, float]:
    """The slowest client's seconds per round, and how many of them were added for steps that were not timed."""
    return max(_client_round_s(run["job"], client["stamps_s"]) for client in run["clients"])


def _client_round_s(job: Mapping[str, Any], stamps_s: list[float]) -> tuple[float, float]:
    method, timed = METHODS[job["method"]], job["local_steps"]
    rounds_s = _differences(stamps_s[::timed])[method.timing.untimed_rounds :]
    missing = round_steps(method, SIZES[job["size"]]) - timed
    steps_s = [s for i, s in enumerate(_differences(stamps_s), start=1) if i % timed]
    added_s = missing * statistics.median(steps_s) if missing else 0.0
    return statistics.mean(rounds_s) + added_s, added_s


def table(training: Iterable[Run], timing: Iterable[Run], target: float) -> list[dict[str, Any]]:
    """One row per method that finished training: its best learning rate, curve, and cost to reach the target.

    Args:
        training: Runs of any method and learning rate.
        timing: Timed runs; the median is used of several with the same method and link.
        target: Held-out loss in nats per token.
    """
    finished = [run for run in training if "failed" not in run]
    timed = [run for run in timing if "failed" not in run]
    best = {name: min(runs, key=_final_loss) for name in METHODS if (runs := _of(finished, name))}
    return [_row(name, run, _of(finished, name), _of(timed, name), target) for name, run in best.items()]


def _row(name: str, best: Run, swept: list[Run], timed: list[Run], target: float) -> dict[str, Any]:
    points = curve(best)
    reached = next((p for p in points if p["loss"] <= target), None)
    seconds = {link: statistics.median(runs) for link in LINKS if (runs := _rounds_s(timed, link))}
    return {
        "method": name,
        "title": METHODS[name].title,
        "learning_rate": best["job"]["learning_rate"],
        "final_loss_by_learning_rate": {str(run["job"]["learning_rate"]): _final_loss(run) for run in swept},
        "steps_a_round": best["job"]["local_steps"],
        "curve": points,
        "final_loss": points[-1]["loss"],
        "sent_bytes": points[-1]["sent_bytes"],
        "target_loss": target,
        "rounds_to_target": reached and reached["rounds"],
        "bytes_to_target": reached and reached["sent_bytes"],
        "round_s": seconds,
        "seconds_to_target": {link: reached["rounds"] * s for link, s in seconds.items()} if reached else {},
    }


def _of(runs: Iterable[Run], method: str) -> list[Run]:
    return [run for run in runs if run["job"]["method"] == method]


def _rounds_s(timed: list[Run], link: str) -> list[float]:
    return [round_s(run)[0] for run in timed if run["link"] == link]


def _final_loss(run: Run) -> float:
    return curve(run)[-1]["loss"]


def _differences(values: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(values)]
