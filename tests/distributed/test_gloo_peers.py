"""Whom gloo is connected to, once a group is open."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from lightning_parablock.errors import ProtocolError
from lightning_parablock.meeting.connections import Connection, connections_here, given_up_after
from lightning_parablock.meeting.gloo_peers import GlooPeers
from tests.support.launch import run_ranks

OWN, B, C = ("10.82.0.2", 4001), ("10.82.0.3", 4002), ("10.82.0.4", 4003)
PEERS = GlooPeers("version 2 of federation clinic", OWN, {"b": B, "c": C})
OTHER_SERVICE: Connection = (("10.82.0.2", 50001), ("10.82.0.9", 443))
FROM_B: Connection = (OWN, ("10.82.0.3", 60001))
TO_C: Connection = (("10.82.0.2", 50002), C)


def test_gloo_is_connected_to_the_listener_that_was_announced() -> None:
    for output in run_ranks(2, ["-m", "tests.distributed.worker_gloo_peers"]):
        assert "CONNECTED" in output.splitlines()


def test_a_rank_that_gives_gloo_another_address_than_before_is_named() -> None:
    connecting, _ = run_ranks(2, ["-m", "tests.distributed.worker_gloo_peers", "--elsewhere"])
    assert "gloo has 0 connections with site 'b' at 127.0.0.1, the address that version 1 of federation f" in connecting


def test_one_connection_with_each_site_in_either_direction() -> None:
    PEERS.check([FROM_B, TO_C, OTHER_SERVICE])
    PEERS.check([FROM_B, (OWN, ("10.82.0.4", 60002))])


@pytest.mark.parametrize(
    ("new", "named"),
    [
        ([FROM_B], "0 connections with site 'c'"),
        ([FROM_B, (("10.82.0.2", 50002), ("203.0.113.9", 4003))], "0 connections with site 'c'"),  # outside the links
        ([TO_C, (OWN, ("10.82.0.4", 60002))], "0 connections with site 'b'"),  # c has taken b's place
        ([FROM_B, TO_C, (OWN, ("10.82.0.4", 60002))], "2 connections with site 'c'"),  # b's, too, has come
        ([FROM_B, (("10.82.0.2", 50002), ("10.82.0.4", 29500))], "0 connections with site 'c'"),  # c's store
    ],
)
def test_another_address_or_one_too_many(new: list[Connection], named: str) -> None:
    with pytest.raises(ProtocolError, match=rf"gloo has {named} at 10\.82\.0\.\d, the address that version 2 of"):
        PEERS.check(new)


def test_connections_that_one_end_has_closed_do_not_count() -> None:
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        before, place = connections_here(), server.getsockname()
        client = socket.create_connection(place)
        accepted = opened.enter_context(server.accept()[0])
        ends = client.getsockname(), place
        assert connections_here() - before == {ends, ends[::-1]}
        client.close()
        assert accepted.recv(1) == b""
        assert connections_here() == before


def test_the_kernel_gives_up_new_connections_alone_and_asks_the_other_end_before() -> None:
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        before = opened.enter_context(socket.create_connection(server.getsockname()))
        with given_up_after(7.0):
            new = opened.enter_context(socket.create_connection(server.getsockname()))
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
        options += [(socket.IPPROTO_TCP, one) for one in (socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE)]
        assert [new.getsockopt(*option) for option in options] == [1, 7000, 1]
        assert [before.getsockopt(*option) for option in options[:2]] == [0, 0]
