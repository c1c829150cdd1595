"""Whatever happens to a federation, servers see uniform bytes, and sums that cannot be subtracted.

The spoilers below are the mistakes that this has to notice; each must be found.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lightning_parablock.errors import SubmissionError
from lightning_parablock.masking import masks, stretches
from lightning_parablock.masking import session as agreed
from lightning_parablock.masking.agreement import Lane
from tests.masking.audit import KINDS, THRESHOLD, Findings
from tests.masking.histories import History, Spoiler

HISTORIES = 1000
MORE = 4000
"""Further histories, without messages."""
FEW = 100
"""Histories in which a spoiler must be found."""


def audited(seeds: range, spoiler: Spoiler | None = None, *, is_masked: bool = True) -> Findings:
    findings = Findings()
    for seed in seeds:
        findings.add(History(seed, spoiler or Spoiler(), is_masked))
    return findings


def test_servers_learn_nothing_but_sums_that_share_no_contribution() -> None:
    findings = audited(range(HISTORIES))
    assert findings.sums > HISTORIES
    assert findings.shared == 0
    assert findings.bare == 0
    statistics = findings.chi_squares()
    assert list(statistics) == list(KINDS), "every kind of pair must occur"
    assert {kind: value for kind, value in statistics.items() if value > THRESHOLD} == {}


def test_no_contribution_is_part_of_two_sums() -> None:
    findings = audited(range(HISTORIES, HISTORIES + MORE), is_masked=False)
    assert findings.sums > MORE
    assert findings.shared == 0


def test_the_histories_hold_what_they_are_meant_to() -> None:
    """Rounds that were repeated with equal bits, with new ones, after a loss, and in other runs."""
    seen = Counter[str]()
    for seed in range(FEW):
        history = History(seed)
        seen.update(event.partition(":")[0].partition(" site-")[0].split(" site")[0] for event in history.events)
        salts: dict[tuple[str, int], set[bytes]] = {}
        for message in history.messages:
            site, _, salt, round_index, _ = message.contribution
            salts.setdefault((site, round_index), set()).add(salt)
        sessions: dict[object, set[int]] = {}
        for message in history.messages:
            sessions.setdefault(message.contribution, set()).add(message.session)
        seen["repeated with a new salt"] += any(len(found) > 1 for found in salts.values())
        seen["repeated with equal bits"] += any(len(found) > 1 for found in sessions.values())
    for what in ("start", "resume", "other members", "new run"):
        assert seen[what] > 10, seen
    assert seen["repeated with a new salt"] > 10 and seen["repeated with equal bits"] > 10, seen


def test_an_offset_free_stream_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = masks._add_masks

    def from_the_start(use: masks._Use, values: torch.Tensor, first: int) -> None:
        real(use, values, 0 * first)

    monkeypatch.setattr(masks, "_add_masks", from_the_start)
    findings = audited(range(FEW))
    assert findings.bare > FEW
    assert findings.chi_squares()["pieces of one message"] > THRESHOLD


def test_a_static_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = agreed.pair_key

    def for_all_rounds(secret: bytes, salt: bytes, i: int, j: int, round_index: int, block: int, lane: Lane) -> bytes:
        return real(secret, salt, i, j, 0 * round_index, block, lane)

    monkeypatch.setattr(agreed, "pair_key", for_all_rounds)
    findings = audited(range(FEW))
    assert findings.bare > 0
    assert findings.chi_squares()["exchanges of one session"] > THRESHOLD


def test_one_key_for_all_lanes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = agreed.pair_key

    def for_all_lanes(secret: bytes, salt: bytes, i: int, j: int, round_index: int, block: int, lane: Lane) -> bytes:
        return real(secret, salt, i, j, round_index, block, "values")

    monkeypatch.setattr(agreed, "pair_key", for_all_lanes)
    findings = audited(range(FEW))
    assert findings.bare > 0
    assert findings.chi_squares()["lanes of one contribution"] > THRESHOLD


def test_session_keys_that_are_kept_are_found() -> None:
    findings = audited(range(FEW), Spoiler(one_session_key=True))
    assert findings.bare > 0
    assert findings.chi_squares()["one contribution in two sessions"] > THRESHOLD


@pytest.mark.parametrize(
    "spoiler", [Spoiler(redoes=True), Spoiler(never_salts=True), Spoiler(ignores_identifiers=True)]
)
def test_a_second_sum_of_one_contribution_is_found(spoiler: Spoiler) -> None:
    """A redo after a loss, a repeat without a salt, and a site that cannot repeat while the others do."""
    findings = Findings()
    for seed in range(HISTORIES):
        findings.add(History(seed, spoiler))
        if findings.shared:
            break
    assert findings.shared > 0
    assert findings.bare == 0, "the masks are right: it is the sums that can be subtracted"


def test_a_redo_is_refused_before_anything_leaves() -> None:
    record, salt = stretches.begin((), 0, stretches.context_of("settings", {"a": b"", "b": b"", "c": b""}), b"", bytes)
    left = stretches.context_of("settings", {"a": b"", "b": b""})
    with pytest.raises(SubmissionError, match="round 0: its contribution was made for a sum of other sites"):
        stretches.refuse_unless_begun(record, 0, left, salt)
