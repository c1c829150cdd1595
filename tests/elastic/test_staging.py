"""A generation that is staged late does not take the place of a newer one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_parablock.errors import SealedError
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.report import Decision
from tests.elastic.member import Member, founding


def later(decision: Decision, generation: int) -> Decision:
    """The decision of the next generation, with the same members."""
    record = replace(decision.record, generation=generation, joiners=())
    return Decision(record, MembershipLog((*decision.log.records, record)), {0: record.kept, 1: record.kept}, 0)


def test_what_is_staged_late_is_refused() -> None:
    member, first = Member(0, port=0), founding(2)
    transport = member.transport
    transport.stage(first, {})
    transport.open(None)
    old, new = later(first, 1), later(first, 2)
    transport.stage(old, {})
    transport.stage(new, {})
    with pytest.raises(SealedError, match="generation 1 is staged too late: 2 is here already"):
        transport.stage(old, {})
    transport.stage(new, {})  # twice is no harm
    transport.open(None)
    assert transport.log == new.log
    for decision in (old, new):
        with pytest.raises(SealedError) as caught:
            transport.stage(decision, {})
        assert caught.value.sealed == 2
    assert transport.staged is None
