"""Random histories with secure sums and the real engine: the bits of the plain loop, and what servers got meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from typing import Any

import pytest
from typing_extensions import override

from lightning_parablock.errors import ParaBlockError, SubmissionError
from lightning_parablock.masking.recorded import RecordedMasks
from lightning_parablock.regroup.log import Record
from tests.elastic.histories import History
from tests.elastic.secured import Ear, Secured

N_HISTORIES = int(os.environ.get("SECURE_HISTORIES", "64"))
"""``make soak`` runs 1,000."""
GROUPS = 4
MOST = 150
"""Histories until a spoilt rule has to be noticed."""

pytestmark = pytest.mark.usefixtures("one_thread")


class SecureHistory(History):
    """A history whose sums are secure; what is not drawn as in others follows from the seed, too."""

    def __init__(self, seed: int, *, keeps_keys: bool = False, **fixed: Any) -> None:
        self._keeps_keys = keeps_keys
        draw = random.Random(seed + 10_000)
        width = draw.choice([1, 2])
        drawn = {
            "secure": width,
            "n": draw.choice([3, 4, 5, 5, 6]),
            "rounds": draw.randint(8, 16),
            "order": draw.choice(["sequential", "random"]),
            "cohort": None,
            "compression": draw.choice(["none", "none", "bf16"]),
            "weighting": "uniform" if width == 1 else draw.choice(["uniform", "samples"]),
            "min_clients": 3,
        }
        super().__init__(seed, **{**drawn, **fixed})

    @override
    def secured(self) -> Secured:
        return Secured(self.drawn["secure"], keeps_keys=self._keeps_keys)

    @property
    def ear(self) -> Ear:
        """What servers got."""
        assert self.setup.secure is not None
        return self.setup.secure.ear


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_histories_have_the_bits_of_the_plain_loop_and_no_contribution_in_two_sums(group: int) -> None:
    seen, n_sums, n_messages = Counter[str](), 0, 0
    for seed in range(group, N_HISTORIES, GROUPS):
        history = SecureHistory(seed)
        try:
            seen += history.check()
            assert history.ear.shared == 0, "a contribution is part of two opened sums"
            assert history.ear.repeated == 0, "two messages have a mask in common"
        except Exception as error:
            error.add_note(f"history {seed}: SecureHistory({seed}).check() repeats it")
            raise
        n_sums += len({one for sums in history.ear.sums.values() for one in sums})
        n_messages += history.ear.n_messages
    print(dict(sorted(seen.items())), n_sums, n_messages)
    least = N_HISTORIES // GROUPS // 4
    for what in ("histories compared", "joins", "dropped exchanges"):
        assert seen[what] >= least, f"histories that show little: {seen}"
    assert seen["kept commits forwarded to survivors"] and not seen["redone exchanges"], seen
    assert n_sums > least and n_messages > n_sums


def test_the_histories_hold_each_delay_topology_and_width() -> None:
    drawn = [SecureHistory(seed).drawn for seed in range(N_HISTORIES)]
    for topology in ("star", "sharded"):
        for width in (1, 2):
            delays = {d["delay"] / d["K"] for d in drawn if (d["topology"], d["secure"]) == (topology, width)}
            assert {0, 1, 2} <= delays, f"{topology} with {width} bytes: {delays}"


def redo(patch: pytest.MonkeyPatch) -> None:
    """What is not kept is done again with those who are left, as with the plain mean."""
    patch.setattr(Record, "has_dropped", lambda self, key: False)


PLAIN: dict[str, Any] = {"server": "sgd", "dtype": "float32", "begin": -1, "n": 5}


def test_a_redo_is_refused_by_the_record_of_contributions(monkeypatch: pytest.MonkeyPatch) -> None:
    redo(monkeypatch)
    for seed in range(MOST):
        try:
            SecureHistory(seed, **PLAIN).check()
        except SubmissionError:
            return
        except (AssertionError, ParaBlockError, KeyError):
            continue
    pytest.fail(f"{MOST} histories did not notice a redo")


def test_a_redo_that_nothing_refuses_puts_contributions_into_two_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    redo(monkeypatch)
    monkeypatch.setattr(RecordedMasks, "record", lambda self, round_index: None)
    monkeypatch.setattr("tests.elastic.secure_carrier.check_members", lambda cohort, record: None)
    assert any(_found(SecureHistory(seed, **PLAIN)).shared for seed in range(MOST))


def test_keys_that_outlive_their_generation_hide_two_messages_with_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    redo(monkeypatch)
    monkeypatch.setattr(RecordedMasks, "record", lambda self, round_index: None)
    monkeypatch.setattr("tests.elastic.secure_carrier.check_members", lambda cohort, record: None)
    assert any(_found(SecureHistory(seed, keeps_keys=True, **PLAIN)).repeated for seed in range(MOST))


def _found(history: SecureHistory) -> Ear:
    with contextlib.suppress(AssertionError, ParaBlockError, KeyError):  # the bits are no longer the loop's either
        history.check()
    return history.ear
