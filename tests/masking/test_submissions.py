"""The record on the disk: whole, private, and understood or refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from lightning_parablock.errors import ConfigurationError, IdentityError, SubmissionError
from lightning_parablock.masking import submissions
from lightning_parablock.masking.stretches import NO_SALT, context_of
from lightning_parablock.masking.submissions import FILE_NAME, Submissions

A, B = (context_of("settings", {"x": bytes([n])}) for n in range(2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "site"


def test_a_record_outlives_its_process(folder: Path) -> None:
    site = Submissions.create(folder)
    assert not site.was_missing
    assert [site.begin(r, A) for r in range(4)] == [NO_SALT] * 4
    salt = Submissions(folder).begin(2, B)
    assert len(salt) == 16
    again = Submissions(folder)
    assert not again.was_missing
    assert again.begin(3, B) == again.begin(2, B) == salt
    assert again.begin(2, A) == NO_SALT
    again.begin_again(3, B, salt, in_flight=[2])
    with pytest.raises(SubmissionError, match="round 2"):
        again.begin_again(3, A, salt, in_flight=[2])


def test_a_run_continues_with_its_own_salt_and_leaves_no_trace_where_it_cannot(folder: Path) -> None:
    site = Submissions.create(folder)
    salt = site.begin(0, A)
    other = site.begin(0, B)
    site.begin_again(1, A, salt, in_flight=[0])
    text = (folder / FILE_NAME).read_text()
    with pytest.raises(SubmissionError, match="round 0: its contribution was made for a sum of other sites"):
        site.begin_again(2, A, other, in_flight=[0])
    with pytest.raises(SubmissionError, match="round 1: with the batches that this run draws"):
        site.begin_again(1, B, salt)
    assert (folder / FILE_NAME).read_text() == text


def test_a_round_is_on_the_disk_before_its_salt_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Submissions.create(folder)

    def full(*_: object, **__: object) -> None:
        raise ConfigurationError("the disk is full")

    monkeypatch.setattr(submissions, "write_whole", full)
    with pytest.raises(ConfigurationError, match="full"):
        site.begin(0, A)


def test_a_lost_record_begins_with_a_salt(folder: Path) -> None:
    Submissions.create(folder).begin(0, A)
    before = Submissions(folder).identifier(b"data")
    (folder / FILE_NAME).unlink()
    site = Submissions(folder)
    assert site.was_missing
    salt = site.begin(0, A)
    assert len(salt) == 16 and Submissions(folder).begin(0, A) == salt
    assert site.identifier(b"data") != before


def test_an_identifier_names_the_record_and_the_state_of_the_site(folder: Path, tmp_path: Path) -> None:
    site, other = Submissions.create(folder), Submissions.create(tmp_path / "other")
    assert site.identifier(b"data") == Submissions(folder).identifier(b"data")
    assert len({site.identifier(b"data"), site.identifier(b"more"), other.identifier(b"data")}) == 3
    assert len(site.identifier(b"")) == 32


def test_a_record_is_made_once(folder: Path) -> None:
    Submissions.create(folder)
    with pytest.raises(SubmissionError, match="is there already"):
        Submissions.create(folder)


def test_other_users_may_not_read_it(folder: Path) -> None:
    Submissions.create(folder)
    assert (folder / FILE_NAME).stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    (folder / FILE_NAME).chmod(0o644)
    with pytest.raises(IdentityError, match="is open to other users"):
        Submissions(folder)


def test_threads_do_not_lose_each_others_rounds(folder: Path) -> None:
    site = Submissions.create(folder)
    contexts = [context_of("settings", {"x": bytes([n])}) for n in range(4)]
    threads = [threading.Thread(target=site.begin, args=(0, context)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({Submissions(folder).begin(0, context) for context in contexts}) == 4
    assert len(json.loads((folder / FILE_NAME).read_text())["stretches"]) == 4


def test_a_record_that_stays_locked_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, other = Submissions.create(folder), Submissions(folder)
    other._lock.timeout = 0.05
    with site._lock, pytest.raises(SubmissionError, match=r"was locked by another process for 10 s"):
        other.begin(0, A)


GOOD: dict[str, Any] = {"secret": "00" * 32, "first_salt": "", "stretches": [[A, "11" * 16, 0, 3]]}


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({**GOOD, "secret": "00"}, "is not 32 bytes"),
        ({**GOOD, "secret": "0A" * 32}, "is not 32 bytes"),
        ({**GOOD, "first_salt": "11"}, "is not 16 bytes"),
        ({**GOOD, "stretches": [[A, "11" * 16, 3, 1]]}, "rounds 3 to 1 are none"),
        ({**GOOD, "stretches": [[A, "11" * 16, -1, 1]]}, "-1 is no round"),
        ({**GOOD, "stretches": [[A, "11" * 16, 0, True]]}, "True is no round"),
        ({**GOOD, "stretches": [[A[1:], "11" * 16, 0, 1]]}, "malformed"),
        ({**GOOD, "stretches": [[A, "11" * 16, 0]]}, "not enough values"),
        ({**GOOD, "stretches": 3}, "malformed"),
        ({"secret": "00" * 32, "stretches": []}, "it has no 'first_salt'"),
        ([], "malformed"),
        ("", "malformed"),
    ],
)
def test_a_damaged_record_is_refused_with_what_to_do(folder: Path, said: Any, named: str) -> None:
    path = folder / FILE_NAME
    Submissions.create(folder)
    path.write_text(json.dumps(GOOD))
    Submissions(folder)
    path.write_text(json.dumps(said) if said else "")
    with pytest.raises(SubmissionError, match=named) as refused:
        Submissions(folder)
    assert str(path) in str(refused.value) and "do not restore it from a backup" in str(refused.value)


def test_a_record_that_is_cut_or_too_large_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Submissions.create(folder)
    path = folder / FILE_NAME
    path.write_text(path.read_text()[:-10])
    with pytest.raises(SubmissionError, match="malformed"):
        Submissions(folder)
    monkeypatch.setattr(submissions, "MOST_BYTES", 10)
    with pytest.raises(ConfigurationError, match="is larger than 10 bytes"):
        Submissions(folder)
