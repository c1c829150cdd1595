"""What bar, loggers, timeline and report page show of sites that come and go, and not with a fixed membership."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_parablock.callbacks.picture import draw_timeline
from lightning_parablock.callbacks.presence import Gap, gaps, lines_of, membership_of, sites_that_are_in
from lightning_parablock.callbacks.trace import GAP, chrome_trace
from lightning_parablock.cli import main
from lightning_parablock.elastic.journal import FINISHED, Line
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.regroup.changes import Change
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.report.page_clients import client_rows, why_no_rounds
from lightning_parablock.report.page_figures import NO_MEMBER, timeline_figure
from lightning_parablock.report.page_membership import membership_figure, membership_note, membership_rows
from lightning_parablock.runs.files import read_run
from tests.elastic.test_journal import LOG
from tests.unit.test_cli_report import record
from tests.unit.test_report_page import run_folder

ORIGIN_S = record(0, 0).start_s


class Elastic:
    """What callbacks see of the strategy in an elastic run."""

    membership_log = MembershipLog(LOG.records[:3])
    client_sites = LOG.records[2].sites


def lines() -> list[Line]:
    """The openings of :data:`LOG` at 0, 5, 8 and 12 s, and the end at 15 s."""
    opened = [
        Line(ORIGIN_S + at_s, "opened", "a", "run", one.record, one.joined, one.gone, (11, 12) if at_s == 5 else ())
        for at_s, one in zip((0, 5, 8, 12), Change.all_of(LOG), strict=True)
    ]
    return [*opened, Line(ORIGIN_S + 15, FINISHED, "a", "run")]


def elastic_folder(folder: Path, noted: list[Line]) -> Path:
    run_folder(folder, sites=["a", "b", "c"], clients=3)
    (folder / "membership.jsonl").write_text("".join(json.dumps(one.to_json()) + "\n" for one in noted))
    records = [record(t, c) for t in range(3) for c in (0, 3)]
    trace = chrome_trace(records, ClientNames.of(Elastic), gaps(noted, ORIGIN_S + 16))
    (folder / "timeline.json").write_text(json.dumps(trace))
    return folder


def test_bar_and_loggers_say_who_is_in() -> None:
    assert sites_that_are_in(Elastic) == {"sites": "4/4 (a, b, c, d)"}
    assert membership_of(Elastic, 0) == {"membership/members": 3.0, "membership/generation": 0.0}
    assert membership_of(Elastic, 14) == {"membership/members": 2.0, "membership/generation": 2.0}
    assert membership_of(Elastic, 15) == {"membership/members": 4.0, "membership/generation": 3.0}
    long = {client: f"north-hospital-{client}" for client in range(4)}
    newest = replace(LOG.records[3], sites=long)
    many = type("Many", (), {"membership_log": MembershipLog((newest,))})
    assert sites_that_are_in(many) == {"sites": "2/4"}


@pytest.mark.parametrize("strategy", [object(), type("Before", (), {"membership_log": MembershipLog()})()])
def test_a_fixed_membership_shows_nothing(strategy: Any) -> None:
    assert sites_that_are_in(strategy) == membership_of(strategy, 3) == {}
    assert gaps(lines_of(strategy), 9.0) == []


def test_gaps_are_the_times_in_which_a_site_was_no_member() -> None:
    found = gaps(lines(), ORIGIN_S + 16)
    assert [(g.client, g.start_s - ORIGIN_S, g.end_s - ORIGIN_S, g.why) for g in found] == [
        (1, 5, 8, "lost: no sign of life for 5 s"),
        (1, 12, 16, "left"),
        (2, 12, 16, "lost"),
        (3, 0, 8, "not there yet"),
    ]


def test_names_follow_the_client_ids() -> None:
    names = ClientNames.of(Elastic)
    assert names.clients == (0, 1, 2, 3)
    assert (names.label(3), names.key(3), names.label(9)) == ("site d", "site_d", "client 9")


def test_the_timeline_marks_gaps(tmp_path: Path) -> None:
    run = read_run(elastic_folder(tmp_path, lines()))
    assert [one.client for one in run.rounds] == [0, 3] * 3
    assert [(g.client, g.start_s, g.end_s) for g in run.gaps] == [(1, 5, 8), (1, 12, 16), (2, 12, 16), (3, 0, 8)]
    figure: Any = timeline_figure(run.rounds, run.names, run.gaps)
    marked = next(bar for bar in figure.data if bar.name == NO_MEMBER)
    assert list(marked.y)[:2] == ["site b", "site b exchange"] and list(marked.base)[:2] == [5.0, 5.0]
    plain: Any = timeline_figure(run.rounds, run.names)
    assert NO_MEMBER not in [bar.name for bar in plain.data]
    records = [record(0, 0)]
    assert GAP not in json.dumps(chrome_trace(records))
    draw_timeline(records, tmp_path / "plain.png")
    draw_timeline(records, tmp_path / "gaps.png", gaps=[Gap(1, records[0].start_s - 9, records[0].end_s, "left")])
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "gaps.png").read_bytes()


def test_the_page_shows_who_came_and_went(tmp_path: Path) -> None:
    other = replace(lines()[0], run="an earlier run")
    run = read_run(elastic_folder(tmp_path, [other, *lines()]))
    rows = membership_rows(run)
    assert [row[1:] for row in rows] == [
        ("0", "a, b, c", "a, b, c", "", "0", ""),
        ("2", "a, c", "", "b: no sign of life for 5 s", "12", "11, 12"),
        ("3", "a, b, c, d", "b, d", "", "15", ""),
        ("4", "a, d", "", "b: left; c: lost", "20", ""),
        ("", "", "", "site a: finished", "", ""),
    ]
    figure: Any = membership_figure(run)
    bars = {bar.name: (list(bar.base), list(bar.x)) for bar in figure.data}
    end_s = 16.5  # of the last exchange in the timeline
    assert bars["site b"] == ([0.0, 8.0], [5.0, 4.0]) and bars["site d"][0] == [8.0]
    assert bars["site a"] == ([0.0], [pytest.approx(max(15.0, end_s), abs=3)])
    assert bars[NO_MEMBER][0] == [5.0, 12.0, 12.0, 0.0]
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Membership</h2>" in page and "b: no sign of life for 5 s" in page and NO_MEMBER in page


def test_a_joiner_knows_no_times_of_what_was_before(tmp_path: Path) -> None:
    came = ORIGIN_S + 8
    noted = [replace(one, event="told", time_s=came) if one.time_s < came else one for one in lines()]
    run = read_run(elastic_folder(tmp_path, noted))
    assert [row[0] for row in membership_rows(run)[:2]] == ["", ""]
    assert membership_note(run).startswith("Generations that had opened before this site came")
    figure: Any = membership_figure(run)
    assert [list(bar.base) for bar in figure.data if bar.name == "site d"] == [[0.0]]


def test_a_run_that_was_interrupted_shows_its_membership(tmp_path: Path) -> None:
    elastic_folder(tmp_path, lines()[:2])
    (tmp_path / "timeline.json").unlink()
    figure: Any = membership_figure(read_run(tmp_path))
    assert figure is not None and len(figure.data) == 3
    assert membership_note(read_run(tmp_path)) == ""


def test_the_page_of_a_fixed_membership_has_no_such_part(tmp_path: Path) -> None:
    assert membership_figure(read_run(run_folder(tmp_path))) is None
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Membership" not in page.split("</script>")[-1] and NO_MEMBER not in page


def test_the_table_of_clients_has_all_sites_and_no_zeros_for_rounds_that_nobody_knows(tmp_path: Path) -> None:
    folder = elastic_folder(tmp_path, lines())
    run = read_run(folder)
    assert [(row[0], row[3]) for row in client_rows(run)] == [
        ("site a", "3"),
        ("site b", ""),
        ("site c", ""),
        ("site d", "3"),
    ]
    assert "no other site knows them" in why_no_rounds(run)
    (folder / "timeline.json").unlink()
    run = read_run(folder)
    assert [(row[0], row[3]) for row in client_rows(run)] == [(f"site {name}", "") for name in "abcd"]
    assert "has not reached it" in why_no_rounds(run)
