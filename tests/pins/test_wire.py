"""Messages have the bytes that they had: ranks of different versions refuse each other only by the version number."""

from __future__ import annotations

import pytest

from tests.pins import wire
from tests.pins.stored import stored


@pytest.mark.parametrize("codec", wire.COMPRESSIONS)
def test_a_message_of_each_codec(codec: str) -> None:
    assert wire.messages()[codec] == stored("wire")["messages"][codec]


def test_every_codec_is_stored() -> None:
    assert list(wire.COMPRESSIONS) == list(stored("wire")["messages"])


def test_the_header_of_a_commit() -> None:
    assert wire.commit_header() == stored("wire")["commit header"]


def test_where_blocks_are_cut() -> None:
    assert wire.cuts() == stored("wire")["cuts"]
