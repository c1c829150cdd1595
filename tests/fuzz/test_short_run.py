"""Each parser of foreign bytes, for a few hundred messages; ``make fuzz`` runs them for longer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_parablock.errors import ProtocolError
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

EXAMPLES = settings(max_examples=50, derandomize=True, deadline=None, database=None)
_DAMAGED = 5
"""Damaged messages in an example, beside one of random bytes."""


def short_run(target: Target) -> None:
    """Random bytes, and damaged seeds: each is read or refused."""

    @EXAMPLES
    @given(st.binary(max_size=300), st.integers(0, 2**32))
    def run(data: bytes, choice: int) -> None:
        target.accepts(data)
        for more in range(_DAMAGED):
            target.accepts(target.damaged(choice + more))

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_arrives_is_read_or_refused_by_a_named_error(name: str) -> None:
    target = TARGETS[name]
    assert target.accepts(target.seeds[0]), "the seed is no valid message"
    assert len({target.damaged(choice) for choice in range(50)}) > 20
    short_run(target)


def test_another_error_is_a_finding() -> None:
    def parse(data: bytes) -> None:
        if data[:1] == b"{":
            raise KeyError("a name is missing")
        raise ProtocolError("no message")

    with pytest.raises(KeyError, match="a name is missing") as found:
        short_run(Target("spoilt", parse, (ProtocolError,), (b'{"a": 1}',)))
    assert "spoilt has been given b'{" in "".join(found.value.__notes__)
