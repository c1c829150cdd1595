"""What a site notes of the openings, and says of them to its user."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_parablock.elastic.journal import FAILED, FILE_NAME, FINISHED, Journal, read_lines
from lightning_parablock.errors import DroppedError
from lightning_parablock.regroup.changes import Change
from lightning_parablock.regroup.log import MembershipLog, Record

NAMES = {0: "a", 1: "b", 2: "c"}
FOUNDED = Record(0, (0, 1, 2), (0, 1, 2), (0, 1, 2), 0, sites=NAMES)
LOST = Record(2, (0, 2), (), (0, 2), 12, kept=(10, 1), sites=NAMES, gone={1: "lost: no sign of life for 5 s"})
BACK = Record(3, (0, 1, 2, 3), (1, 3), (0, 2, 1, 3), 15, kept=(14, 0), sites={**NAMES, 3: "d"})
LEFT = Record(4, (0, 3), (), (0, 3), 20, kept=(19, 0), sites={**NAMES, 3: "d"}, gone={1: "left", 2: "lost"})
LOG = MembershipLog((FOUNDED, LOST, BACK, LEFT))


def upto(generation: int) -> MembershipLog:
    return MembershipLog(tuple(record for record in LOG.records if record.generation <= generation))


def of_file(folder: Path) -> list[tuple[str, int | None]]:
    return [(one.event, one.record and one.record.generation) for one in read_lines(folder / FILE_NAME)]


def test_each_opening_is_one_line_of_words() -> None:
    assert [change.in_words() for change in Change.all_of(LOG)] == [
        "sites a, b, c found the run, generation 0: they begin with round 0",
        "site b was lost (no sign of life for 5 s): 2 of 3 sites (a, c) continue from round 12 on",
        "site b came back, site d joined: 4 sites (a, b, c, d) continue from round 15 on",
        "site b left, site c was lost: 2 of 4 sites (a, d) continue from round 20 on",
    ]
    again = MembershipLog((FOUNDED, replace(LOST, members=(0, 1, 2), gone={})))
    assert Change.newest(again).in_words().startswith("the members have connected again: 3 sites (a, b, c) continue")
    alone = MembershipLog((FOUNDED, replace(LOST, members=(0,), gone={1: "left", 2: "left"})))
    assert Change.newest(alone).in_words() == "site b left, site c left: 1 of 3 sites (a) continues from round 12 on"


def test_the_file_has_the_records_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal("a")
    journal.note_opening(upto(0), "run")
    journal.keep_in(tmp_path / "a")
    with caplog.at_level(logging.WARNING):
        journal.note_opening(upto(2), "run", [(11, 0), (12, 1), (11, 1)])
    assert "parablock: site b was lost (no sign of life for 5 s)" in caplog.text
    journal.note_opening(LOG, "run")  # with one that others opened while this site was in the next regroup already
    journal.note_end(FINISHED, "run")
    journal.note_failure(None, "run")
    lines = read_lines(tmp_path / "a" / FILE_NAME)
    assert MembershipLog(tuple(one.record for one in lines if one.record)) == LOG
    assert [one.to_json() for one in lines] == [one.to_json() for one in journal.lines]
    assert [one.event for one in lines] == ["opened"] * 4 + ["finished"]
    said = json.loads((tmp_path / "a" / FILE_NAME).read_text().splitlines()[1])
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "event": "opened",
        "site": "a",
        "run": "run",
        "record": json.loads(json.dumps(LOST.to_json())),
        "kept": [10, 1],
        "joined": [],
        "gone": {"b": "lost: no sign of life for 5 s"},
        "redone": [11, 12],
    }


def test_a_site_that_was_lost_notes_why_and_continues_its_file(tmp_path: Path) -> None:
    first = Journal("b")
    first.keep_in(tmp_path)
    first.note_opening(upto(0), "run")
    first.note_failure(DroppedError("site 'b' was silent for too long"), "run")
    assert read_lines(tmp_path / FILE_NAME)[-1].why == "site 'b' was silent for too long"
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"time": "2026')  # killed while it wrote
    again = Journal("b")
    again.keep_in(tmp_path)
    again.note_opening(upto(3), "run")
    again.note_opening(LOG, "run")
    again.note_failure(None, "run")
    assert [(one.event, one.record and one.record.generation) for one in again.lines] == [
        ("told", 0), ("told", 2), ("opened", 3), ("opened", 4), (FAILED, None)
    ]  # fmt: skip
    assert of_file(tmp_path) == [
        ("opened", 0), ("dropped", None), ("told", 2), ("opened", 3), ("opened", 4), (FAILED, None)
    ]  # fmt: skip
    other = Journal("b")
    other.note_opening(upto(0), "another run")
    other.keep_in(tmp_path)
    assert of_file(tmp_path)[-1] == ("opened", 0)


def test_a_site_without_a_generation_has_nothing_to_note(tmp_path: Path) -> None:
    journal = Journal("a")
    journal.keep_in(tmp_path)
    journal.note_failure(None, "")
    assert journal.lines == () and not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").write_text("a file in place of the folder")
    journal = Journal("a")
    journal.keep_in(tmp_path / "a")
    journal.note_opening(upto(0), "run")
    journal.note_opening(LOG, "run")
    assert caplog.text.count("cannot be written, and is not continued") == 1
    assert len(journal.lines) == 4


@pytest.mark.parametrize("text", ["{}\n", "[1]\n", "no JSON\n"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"journal|Expecting"):
        read_lines(tmp_path / FILE_NAME)
