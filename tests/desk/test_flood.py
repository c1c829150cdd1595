"""Strangers who open more connections than a desk accepts do not keep the sites from each other."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator

import pytest

from lightning_parablock.desk import listener
from lightning_parablock.desk.caller import call, close_connections
from lightning_parablock.desk.message import Reply
from lightning_parablock.desk.service import Desk

MOST = 20


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_MOST_CONNECTIONS", MOST)


@contextlib.contextmanager
def strangers(address: str, number: int, sends: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that stay open, with the beginning of a message or nothing at all."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(number)]
        for one in opened:
            with contextlib.suppress(OSError):  # cut in favour of a later one
                one.sendall(sends)
        yield opened


GARBAGE = (b"", b"\0\xff" * 40, b"POST /echo HTTP/1.1\r\nX-", b"POST /nothing HTTP/1.1\r\nContent-Length: 9\r\n\r\n")


@pytest.mark.parametrize("sends", GARBAGE, ids=["silent", "garbage", "half a head", "unknown call"])
def test_a_call_is_answered_while_strangers_hold_every_connection(desk: Desk, few: None, sends: bytes) -> None:
    desk.answer("echo", lambda asked: Reply(asked.said))
    with strangers(desk.address, 3 * MOST, sends):
        for number in range(5):
            close_connections()
            assert call(desk.address, "echo", {"n": number}, limit_s=20.0).said == {"n": number}


def test_a_connection_of_a_site_is_not_cut_for_strangers(desk: Desk, few: None) -> None:
    desk.answer("echo", lambda asked: Reply(asked.said))
    host, _, port = desk.address.rpartition(":")
    message = b"POST /echo HTTP/1.1\r\nParablock-Said: 2\r\nContent-Length: 2\r\n\r\n{}"
    with socket.create_connection((host, int(port)), timeout=20) as known:
        for _ in range(2):
            known.sendall(message)
            assert known.recv(4096).startswith(b"HTTP/1.1 200")
            with strangers(desk.address, 3 * MOST):
                known.sendall(message)
                assert known.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_call_that_anybody_may_send_makes_nobody_known(desk: Desk, few: None) -> None:
    desk.answer("echo", lambda asked: Reply(asked.said))
    desk.answer("who", lambda asked: Reply({}), for_strangers=True)
    message = b"POST /who HTTP/1.1\r\nParablock-Said: 2\r\nContent-Length: 2\r\n\r\n{}"
    with strangers(desk.address, MOST, message) as asking:
        assert all(one.recv(4096).startswith(b"HTTP/1.1 200") for one in asking)
        assert call(desk.address, "echo", {"n": 1}, limit_s=20.0).said == {"n": 1}


def test_a_flood_is_told_once_and_the_connections_are_no_more_than_allowed(
    desk: Desk, few: None, caplog: pytest.LogCaptureFixture
) -> None:
    desk.answer("echo", lambda asked: Reply(asked.said))
    with caplog.at_level(logging.WARNING), strangers(desk.address, 5 * MOST):
        call(desk.address, "echo", {}, limit_s=20.0)
        server = desk._listener._server
        assert len(server._open) <= MOST
    assert [record.getMessage()[:32] for record in caplog.records] == ["the desk has 20 connections open"]
    ends_s = time.monotonic() + 60
    while len(server._open) > 1 and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert len(server._open) <= 1 and len(server._strangers) == 0


def test_sites_that_hold_every_connection_are_not_cut(desk: Desk, few: None) -> None:
    desk.answer("echo", lambda asked: Reply(asked.said))
    message = b"POST /echo HTTP/1.1\r\nParablock-Said: 2\r\nContent-Length: 2\r\n\r\n{}"
    with strangers(desk.address, MOST, message) as known:
        assert all(one.recv(4096).startswith(b"HTTP/1.1 200") for one in known)
        with strangers(desk.address, 1) as (late,):
            assert late.recv(1) == b""
        for one in known:
            one.sendall(message)
            assert one.recv(4096).startswith(b"HTTP/1.1 200")
