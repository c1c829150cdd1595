"""Which processes of a list concern one of them."""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace

import pytest

from lightning_parablock.elastic.arbiter import Candidate, new_incarnation, of_run
from lightning_parablock.errors import ReplacedError

A = Candidate("a", "01-x", "10.0.0.1:40000", "10.0.0.1:40001", "run 1", 0, 3, 4, True, True, "f00d")
B = Candidate("b", "02-y", "10.0.0.2:40000")


@pytest.mark.parametrize("candidate", [A, B], ids=lambda one: one.site)
def test_a_candidate_travels_as_json(candidate: Candidate) -> None:
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate


def test_what_other_programs_say_is_no_candidate() -> None:
    said = A.to_json()
    for field in fields(A):
        assert Candidate.from_json({name: value for name, value in said.items() if name != field.name}) is None
        assert Candidate.from_json({**said, field.name: None}) is None
    assert Candidate.from_json({**said, "client": True}) is None
    assert [Candidate.from_json(other) for other in (None, {}, [], "a", 3)] == [None] * 5


def test_incarnations_are_ordered_by_their_beginning() -> None:
    names: list[str] = []
    for _ in range(3):
        names.append(new_incarnation())
        time.sleep(0.002)
    assert names == sorted(set(names))
    assert len({new_incarnation() for _ in range(100)}) == 100


def test_the_list_is_sorted_by_site() -> None:
    assert of_run([replace(B, run="run 1"), A], A) == (A, replace(B, run="run 1"))


def test_processes_of_other_runs_are_left_out() -> None:
    other = replace(B, site="c", run="run 2")
    assert of_run([A, B, other], A) == (A, B)
    assert of_run([A, B, other], other) == (B, other)
    assert of_run([A, B, other], B) == (A, B, other)  # it belongs to none yet


def test_of_two_processes_of_a_site_the_newer_counts() -> None:
    newer = replace(B, incarnation="03-a", desk="10.0.0.2:5")
    assert of_run([newer, A, B], A) == of_run([A, B, newer], A) == of_run([A, B, newer], newer) == (A, newer)
    with pytest.raises(ReplacedError, match=r"a newer process of site 'b' is part of the run, .*10\.0\.0\.2:5"):
        of_run([A, B, newer], B)
    assert of_run([A, B, replace(newer, run="run 2")], replace(B, run="run 1")) == (A, B)
