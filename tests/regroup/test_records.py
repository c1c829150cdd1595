"""Logs, reports and decisions keep their values on the way through JSON."""

import json

from lightning_parablock.regroup.log import MembershipLog, Record, Restored
from lightning_parablock.regroup.report import Decision, Report, Source, Standing

LOG = MembershipLog(
    (
        Record(0, (0, 1, 2), (0, 1, 2), (0, 1, 2), 0, sites={0: "a", 1: "b", 2: "c"}, samples={0: 5, 1: 6, 2: 7}),
        Record(
            3,
            (0, 1, 3),
            (3,),
            (1, 0, 3),
            4,
            kept=(2, 1),
            sites={0: "a", 1: "b", 2: "c", 3: "d"},
            samples={3: 9},
            gone={2: "lost"},
            restored=(Restored(0, 2, ((1, 0), 0)), Restored(1, 2, None)),
        ),
    )
)


def through_json(value):
    return type(value).from_json(json.loads(json.dumps(value.to_json())))


def test_a_log_survives_json():
    assert through_json(LOG) == LOG


def test_a_report_survives_json():
    standing = Standing(LOG, (3, 0), {0: (((1, 0), 0), ((2, 1), 3))}, {(1, 2): (((-1, -1), 0),)})
    report = Report("b", None, standing, Standing(LOG), 5, True, 6, 4, ("x", "y"), ("x", "z"))
    assert through_json(report) == report
    assert through_json(Report("d", 3, None, None)) == Report("d", 3, None, None)


def test_a_decision_survives_json():
    decision = Decision(
        LOG.newest,
        LOG,
        {0: (1, 0), 1: (2, 1)},
        1,
        (Source(0, 2, 1, ((1, 0), 0)), Source(1, 2, None, None)),
        {"x": "no id is free"},
    )
    assert through_json(decision) == decision


def test_a_site_that_was_lost_and_came_back_takes_part_in_no_collective_of_the_rounds_before():
    back = Record(4, (0, 1, 3), (0,), (1, 3, 0), 7, kept=(5, 1), sites=LOG.newest.sites)
    log = LOG.and_then(back)
    assert [log.present(t) for t in (3, 4, 6, 7, 9)] == [(1,), (1, 3), (1, 3), (0, 1, 3), (0, 1, 3)]
