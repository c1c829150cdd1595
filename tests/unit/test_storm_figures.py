"""The arithmetic of bench_storm, on a run whose figures can be told by hand, and the schedule of its faults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.storm.cost import ratios
from benchmarks.storm.figures import back_s, commits_of, figures, kept
from benchmarks.storm.raw import packed, unpacked
from benchmarks.storm.schedule import draw


def commit(at_s: float, index: int, text: str = "same", members: int = 2) -> dict[str, Any]:
    """A line of a trace."""
    return {"at_s": at_s, "what": "commit", "round": index, "block": 0, "hash": f"{text}{index}", "members": members}


def line(at_s: float, what: str, **facts: Any) -> dict[str, Any]:
    """A line of a trace."""
    return {"at_s": at_s, "what": what, **facts}


def run() -> dict[str, Any]:
    """Rounds of 2 s; site 1 is killed at 105 and back at 121; the survivor's round 3 lands 5 s after round 2."""
    return {
        "began_s": 100.0,
        "ended_s": 120.0,
        "finished": True,
        "starts_s": [[90.0], [90.0, 108.0]],
        "exits": [],
        "faults": [{"number": 0, "at_s": 105.0, "kind": "kill", "site": 1, "for_s": 3.0}],
        "traces": {
            "0-0": [
                line(92.0, "imported"),
                line(98.0, "member", round=0),
                *[commit(at_s, index) for index, at_s in enumerate((100.0, 102.0, 104.0))],
                *[commit(at_s, index, members=1) for index, at_s in enumerate((109.0, 111.0, 113.0, 115.0), 3)],
                line(125.0, "done", hash="end"),
            ],
            "1-0": [
                line(92.0, "imported"),
                line(98.0, "member", round=0),
                *[commit(at_s, index) for index, at_s in enumerate((100.1, 102.1, 103.9))],
            ],
            "1-1": [
                line(112.0, "imported"),
                line(115.0, "member", round=7),
                commit(115.5, 6),
                commit(121.0, 7),
                line(125.0, "done", hash="end"),
            ],
        },
    }


def test_a_fault_costs_the_survivors_the_time_beyond_a_round() -> None:
    (row,) = figures(run(), 2.0)["faults"]
    assert row["lost_s"] == pytest.approx(109.0 - 105.0 - 2.0)
    assert row["gap_s"] == pytest.approx(109.0 - 104.0 - 2.0)


def test_a_commit_that_is_nearly_there_does_not_hide_the_loss() -> None:
    raw = run()
    raw["faults"][0]["at_s"] = 103.9
    (row,) = figures(raw, 2.0)["faults"]
    assert row["lost_s"] == pytest.approx(104.0 - 103.9 - 2.0)
    assert row["gap_s"] == pytest.approx(3.0)


def test_throughput_counts_rounds_and_who_is_in_them() -> None:
    found = figures(run())
    assert found["round_s"] == 2.0
    assert found["rounds"] == 7
    assert found["rounds_per_s"] == pytest.approx(7 / 20)
    assert found["contributions_per_s"] == pytest.approx((3 * 2 + 3 * 1 + 2) / 20)
    calm = {"rounds_per_s": 0.5, "contributions_per_s": 1.0}
    assert kept(found, calm) == pytest.approx({"rounds": 0.7, "contributions": 11 / 20})


def test_a_victims_first_commit_is_the_first_of_a_round_that_it_has_trained() -> None:
    expected = {"site": 1, "imports_s": 4.0, "member_s": 3.0, "commit_s": 9.0, "gap_s": 0.0}
    assert back_s(run(), commits_of(run()), 2.0) == [expected]


def test_a_site_that_executes_itself_again_has_come_back() -> None:
    raw = run()
    raw["traces"]["0-0"][-1:-1] = [line(116.0, "imported"), line(119.0, "member", round=7), commit(121.0, 7)]
    (again, _) = back_s(raw, commits_of(raw), 2.0)
    assert (again["site"], again["imports_s"], again["member_s"], again["commit_s"]) == (0, None, 3.0, 5.0)


def test_a_round_that_lands_first_anywhere_counts_from_there() -> None:
    assert commits_of(run())[2] == {0: 104.0, 1: 103.9}


def test_what_must_not_happen_is_counted() -> None:
    assert {name: figures(run())[name] for name in ("hangs", "divergences", "lost_rounds", "disagreements")} == {
        "hangs": 0,
        "divergences": 0,
        "lost_rounds": 0,
        "disagreements": 0,
    }
    bad = run()
    lines = bad["traces"]["0-0"]
    lines[3]["hash"] = "other"  # round 1 differs from the other site's
    lines[8]["at_s"] = 180.0  # round 6 ...
    del lines[7]  # and nobody has round 5
    bad["traces"]["1-1"] = [line(125.0, "done", hash="another end")]
    found = figures(bad)
    assert [found[name] for name in ("hangs", "divergences", "lost_rounds", "disagreements")] == [1, 1, 1, 1]


def test_a_result_file_keeps_all_lines() -> None:
    raw = run()
    raw["traces"]["0-0"][-1]["log"] = [{"generation": 0, "members": [0, 1]}]
    raw["traces"]["2-0"] = []
    back = unpacked(json.loads(json.dumps(packed(raw["traces"]))))
    assert back == raw["traces"]


def test_the_schedule_is_a_function_of_the_seed_with_a_fault_in_every_interval() -> None:
    faults = draw(4, 1800.0, 60, 0)
    assert faults == draw(4, 1800.0, 60, 0)
    assert faults != draw(4, 1800.0, 60, 1)
    assert [int(fault.at_s // 30) for fault in faults] == list(range(60))
    assert sum(fault.kind == "kill" for fault in faults) == 30
    assert {fault.kind for fault in faults[:4]} == {"kill", "stop", "cut"}
    assert {fault.site for fault in faults} == set(range(4))
    assert draw(4, 60.0, 0, 0) == []


def test_cost_compares_the_modes_of_each_pair() -> None:
    def one(step_s: float, sent: int) -> list[dict[str, Any]]:
        steps = [[k * step_s, (k + 1) * step_s] for k in range(8)]
        return [{"steps": steps, "link_bytes": [50, 60, 100, 110, 50 + 4 * sent]}]

    pairs = [{"fixed": one(1.0, 1000), "elastic": one(1.0, 1010)}, {"fixed": one(1.0, 1000), "elastic": one(1.0, 1010)}]
    found = ratios(pairs, 2)
    assert found == pytest.approx({"step_s": 1.0, "round_s": 1.0, "sent_bytes": 1.01})
