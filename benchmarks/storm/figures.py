"""What a storm has cost: arithmetic on the traces of its sites.

All hosts are on one machine, so all times come from one clock. A commit is a round whose exchange has landed at a site.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.storm.raw import Raw, lives
from lightning_parablock.regroup.log import MembershipLog

HANG_S = 60.0
FOLLOWS_S = 10.0
"""A fault shows within this time: a stopped or cut-off site is noticed after the silence limit."""
AROUND_S = (-4.0, 5.0)
"""Start, relative to the joiner's first step as a member, and length of the time in which an admission shows."""
Commits = dict[int, dict[int, float]]
"""Round -> site -> when the round's commit has landed there first, in seconds of ``time.time()``."""


def figures(raw: Raw, round_s: float | None = None) -> dict[str, Any]:
    """The figures of one run.

    Args:
        raw: The run.
        round_s: Median seconds of a round without faults; None: take this run's own.

    Returns:
        ``rounds_per_s`` and ``contributions_per_s`` between begin and end, ``round_s``, ``faults`` (one row each),
        ``back_s`` of each restarted process, and the numbers of what must not happen: ``hangs``, ``divergences``,
        ``lost_rounds``, ``disagreements`` (of the sites' membership logs, and of the weights at the end).
    """
    commits = commits_of(raw)
    firsts = sorted(min(by_site.values()) for by_site in commits.values())
    within = [at_s for at_s in firsts if raw["began_s"] <= at_s <= raw["ended_s"]]
    own_round_s = median(after - before for before, after in pairwise(within))
    length_s = raw["ended_s"] - raw["began_s"]
    inside = [index for index, by_site in commits.items() if raw["began_s"] <= min(by_site.values()) <= raw["ended_s"]]
    counted = contributions(raw)
    return {
        "round_s": own_round_s,
        "rounds": len(inside),
        "rounds_per_s": len(inside) / length_s,
        "contributions_per_s": sum(counted.get(index, 0) for index in inside) / length_s,
        "faults": [fault_row(raw, fault, commits, round_s or own_round_s) for fault in raw["faults"]],
        "back_s": back_s(raw, commits, round_s or own_round_s),
        "hangs": sum(after - before > HANG_S for before, after in pairwise(firsts)),
        "divergences": divergences(raw),
        "lost_rounds": lost_rounds(raw, commits),
        "disagreements": disagreements(raw),
        "ended_by_themselves": len(raw["exits"]),
        "finished": raw["finished"],
    }


def commits_of(raw: Raw) -> Commits:
    """When each round's commit has landed at each site."""
    found: Commits = defaultdict(dict)
    for site, line in _lines(raw, "commit"):
        at_s = found[line["round"]].get(site, line["at_s"])
        found[line["round"]][site] = min(at_s, line["at_s"])
    return dict(sorted(found.items()))


def fault_row(raw: Raw, fault: Mapping[str, Any], commits: Commits, round_s: float) -> dict[str, Any]:
    """What one fault has cost the others.

    ``lost_s``: from the fault to the next commit at any other site, less a normal round. ``gap_s``: the longest time
    between two commits at other sites from the last before the fault to the first 10 s after it, less a normal round:
    the commit that was nearly there at the fault does not hide what comes after it.
    """
    next_s = next((at_s for at_s in _at_others(commits, fault["site"]) if at_s > fault["at_s"]), None)
    return {
        **fault,
        "lost_s": None if next_s is None else next_s - fault["at_s"] - round_s,
        "gap_s": _gap_s(commits, fault["site"], fault["at_s"], FOLLOWS_S) - round_s,
    }


def _at_others(commits: Commits, victim: int) -> list[float]:
    seen = [[at_s for site, at_s in by_site.items() if site != victim] for by_site in commits.values()]
    return sorted(min(times) for times in seen if times)


def _gap_s(commits: Commits, victim: int, from_s: float, for_s: float) -> float:
    """The longest time between two commits at other sites, from the last before an interval to the first after it."""
    window = _window(_at_others(commits, victim), from_s, from_s + for_s)
    return max((after - before for before, after in pairwise(window)), default=0.0)


def _window(times: Sequence[float], from_s: float, to_s: float) -> Sequence[float]:
    first, last = bisect_right(times, from_s) - 1, bisect_right(times, to_s)
    return times[max(0, first) : last + 1]


def back_s(raw: Raw, commits: Commits, round_s: float) -> list[dict[str, Any]]:
    """For each time that a site has come back: what it took until its first commit as a member.

    ``imports_s`` is from the start of the process, None where one has executed itself again; ``member_s`` (its first
    step as a member) and ``commit_s`` are from the end of the imports. ``gap_s``: the longest time between two commits
    at other sites around its admission, less a normal round.
    """
    rows: list[dict[str, Any]] = []
    for name, lines in raw["traces"].items():
        site, process = map(int, name.split("-"))
        for number, life in enumerate(lives(lines)):
            told = {line["what"]: line for line in reversed(life)}  # the first of each kind
            if process == number == 0 or "member" not in told:
                continue
            first = told["member"]["round"]
            own = [line["at_s"] for line in life if line["what"] == "commit" and line["round"] >= first]
            if own:
                imported_s, member_s = told["imported"]["at_s"], told["member"]["at_s"]
                rows.append(
                    {
                        "site": site,
                        "imports_s": imported_s - raw["starts_s"][site][process] if number == 0 else None,
                        "member_s": member_s - imported_s,
                        "commit_s": own[0] - imported_s,
                        "gap_s": _gap_s(commits, site, member_s + AROUND_S[0], AROUND_S[1]) - round_s,
                    }
                )
    return rows


def contributions(raw: Raw) -> dict[int, int]:
    """How many sites each committed round has deltas of."""
    log = newest_log(raw)
    counted = {line["round"]: int(line["members"]) for _, line in _lines(raw, "commit") if "members" in line}
    if log is not None:
        keys = {(line["round"], line["block"]) for _, line in _lines(raw, "commit")}
        counted = {key[0]: len(log.contributors(key, log.members_at(key[0]))) for key in keys}
    return counted


def newest_log(raw: Raw) -> MembershipLog | None:
    """The membership log of a site at the end; None where there is none."""
    logs = [line["log"] for _, line in _lines(raw, "done") if "log" in line]
    return MembershipLog.from_json(max(logs, key=len)) if logs else None


def divergences(raw: Raw) -> int:
    """Rounds whose commit had different bits at different sites, or at different times."""
    seen: dict[tuple[int, int], set[str]] = defaultdict(set)
    for _, line in _lines(raw, "commit"):
        seen[line["round"], line["block"]].add(line["hash"])
    return sum(len(hashes) > 1 for hashes in seen.values())


def lost_rounds(raw: Raw, commits: Commits) -> int:
    """Rounds from the first to the last that no site has seen committed."""
    return sum(index not in commits for index in range(max(commits, default=-1) + 1))


def disagreements(raw: Raw) -> int:
    """How many more than one different weights and membership logs the sites hold at the end."""
    done = [line for _, line in _lines(raw, "done")]
    logs = {str(line.get("log")) for line in done}
    return len({line["hash"] for line in done}) - 1 + len(logs) - 1 if done else 0


def kept(storm: Mapping[str, Any], calm: Mapping[str, Any]) -> dict[str, float]:
    """Share of the throughput without faults.

    ``rounds``: the pace of those that are members. ``contributions``: the absent count as lost, too, for as long as
    their restart, imports and admission take.
    """
    return {
        "rounds": storm["rounds_per_s"] / calm["rounds_per_s"],
        "contributions": storm["contributions_per_s"] / calm["contributions_per_s"],
    }


def _lines(raw: Raw, what: str) -> list[tuple[int, dict[str, Any]]]:
    return [
        (int(name.split("-")[0]), line)
        for name, lines in raw["traces"].items()
        for line in lines
        if line["what"] == what
    ]
