"""Calls over real sockets: what goes in comes out, and whatever fails has a name."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning_parablock.desk import caller as desk_caller
from lightning_parablock.desk.caller import call
from lightning_parablock.desk.message import Identity, Reply
from lightning_parablock.desk.service import Call, Desk
from lightning_parablock.errors import (
    ConfigurationError,
    DivergenceError,
    PeerError,
    RefusedError,
    UnreachableError,
)
from lightning_parablock.settings.ports import PortRange
from tests.desk.relay import Relay

Opened = Callable[..., Desk]


def echo(asked: Call) -> Reply:
    return Reply(asked.said, asked.body)


def raw(address: str, request: bytes) -> bytes:
    """What the desk answers to bytes that no caller of ours would send, until it closes the connection."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = bytearray()
        while part := connection.recv(1 << 16):
            answer += part
    return bytes(answer)


def listener() -> tuple[socket.socket, str]:
    """A socket that accepts connections and never answers."""
    silent = socket.create_server(("127.0.0.1", 0))
    return silent, f"127.0.0.1:{silent.getsockname()[1]}"


def test_json_and_bytes_arrive_as_they_were_sent(desk: Desk) -> None:
    desk.answer("echo", echo)
    said = {"words": "Grüße\n", "numbers": [0.1, 1e-320, -0.0, 2**63], "nothing": None, "nested": {"a": [True, []]}}
    for body in (b"", b"\0\xff", bytes(range(256)) * 9000):
        reply = call(desk.address, "echo", said, body)
        assert (reply.said, bytes(reply.body)) == (said, body)
    special = call(desk.address, "echo", {"values": [math.nan, math.inf, -math.inf]}).said["values"]
    assert math.isnan(special[0]) and special[1:] == [math.inf, -math.inf]


def test_a_connection_serves_many_calls_of_a_thread(desk: Desk) -> None:
    desk.answer("echo", echo)
    relay = Relay(desk.address)
    for index in range(20):
        assert call(relay.address, "echo", {"index": index}).said == {"index": index}
        with pytest.raises(RefusedError):
            call(relay.address, "nothing", {}, b"x" * 1000)
    assert relay.connections == 1
    relay.close()


def test_a_process_that_has_ended_keeps_no_connection_of_a_thread_that_calls_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.answer("echo", echo)
    others = [Relay(desk.address) for _ in range(3)]
    for other in others:
        call(other.address, "echo", {})
    call(desk.address, "echo", {})
    kept = dict(desk_caller._connections())
    assert len(kept) == 4
    others[0].close()
    assert desk_caller._has_something(kept[others[0].address][0].sock, 20)
    call(desk.address, "echo", {})
    assert list(desk_caller._connections()) == [*(other.address for other in others[1:]), desk.address]
    assert kept[others[0].address][0].sock is None
    monkeypatch.setattr(desk_caller, "SILENCE_S", 0.0)  # the machines of the others are gone, and say nothing
    call(desk.address, "echo", {})
    assert list(desk_caller._connections()) == [desk.address]
    for other in others[1:]:
        other.close()


def test_many_calls_at_once(desk: Desk) -> None:
    everybody = threading.Barrier(24)

    def meet(asked: Call) -> Reply:
        everybody.wait(20)  # breaks unless all calls are answered at the same time
        return echo(asked)

    desk.answer("meet", meet)
    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(lambda i: call(desk.address, "meet", {"i": i}, bytes([i]) * 200_000), range(24)))
    assert [(reply.said["i"], bytes(reply.body)) for reply in replies] == [(i, bytes([i]) * 200_000) for i in range(24)]


def test_handlers_errors_reach_the_caller_by_kind_and_text(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    def fail(asked: Call) -> Reply:
        raise {
            "chosen": RefusedError("generation 7 is sealed", "sealed", {"sealed": 7}),
            "named": DivergenceError("site b has other bits"),
            "unforeseen": ZeroDivisionError("a slip"),
            "of the disk": FileNotFoundError(2, "no such file"),
        }[asked.said["which"]]

    desk.answer("fail", fail)
    kinds: dict[str, tuple[str, str]] = {}
    with caplog.at_level(logging.WARNING, "lightning_parablock.desk"):
        for which in ("chosen", "named", "unforeseen", "of the disk"):
            with pytest.raises(RefusedError) as raised:
                call(desk.address, "fail", {"which": which})
            assert raised.value.details == ({"sealed": 7} if which == "chosen" else {})
            kinds[which] = (raised.value.kind, str(raised.value).removeprefix(f"'fail' at {desk.address}: "))
    assert kinds == {
        "chosen": ("sealed", "generation 7 is sealed"),
        "named": ("DivergenceError", "site b has other bits"),
        "unforeseen": ("ZeroDivisionError", "a slip"),
        "of the disk": ("FileNotFoundError", "[Errno 2] no such file"),
    }
    assert "a slip" in caplog.text and "sealed" not in caplog.text  # what nobody foresaw is explained where it arose


def test_no_answer_shows_where_in_the_code_an_error_arose(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(asked: Call) -> Reply:
        raise ZeroDivisionError("a slip")

    desk.answer("fail", fail)
    desk.answer("wrong", lambda asked: Reply({"a set": {1}}))
    for name in (b"fail", b"wrong", b"none"):
        answer = raw(desk.address, b"POST /" + name + b" HTTP/1.1\r\nContent-Length: 2\r\nParablock-Said: 2\r\n\r\n{}")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert set(json.loads(body)) <= {"kind", "text", "details"} and b"Traceback" not in answer
        assert head.split()[1] in (b"400", b"500")
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_misspelt_call_gets_a_hint(desk: Desk) -> None:
    desk.answer("prepare", echo)
    with pytest.raises(RefusedError, match=r"'prepere' at .*: this site does not answer .* did you mean 'prepare'"):
        call(desk.address, "prepere", {})


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (b"nonsense\r\n\r\n", "Bad request syntax"),
        (b"GET /echo HTTP/1.1\r\n\r\n", "Unsupported method"),
        (b"POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "must be a number of bytes"),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 5000\r\n\r\n", "longer than the 1000 bytes"),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nParablock-Said: 3\r\n\r\n{}", "longer than the 2 bytes"),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nParablock-Said: 2\r\n\r\n[]", "not a JSON object"),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nParablock-Said: 2\r\n\r\n{'", "not JSON"),
        (b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "must state its length"),
        (b"POST /echo HTTP/1.1\r\nParablock-Wait-S: soon\r\n\r\n", "must be a number of seconds"),
        (b"POST /" + b"x" * 300 + b" HTTP/1.1\r\n\r\n", "name of the call is too long"),
        (b"POST /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n", "the head of a message is longer than 16384 bytes"),
        (b"POST /echo HTTP/1.1\r\nA: " + b"b" * 17000 + b"\r\n\r\n", "the head of a message is longer than 16384"),
        (b"POST /echo HTTP/1.1\r\n" + b"A: %s\r\n" % (b"b" * 990) * 17 + b"\r\n", "longer than 16384 bytes"),
        (b"POST /echo HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", "Too many headers"),
    ],
)
def test_what_is_no_call_gets_a_named_error(opened: Opened, request_: bytes, text: str) -> None:
    desk = opened(most_bytes=1000)
    desk.answer("echo", echo)
    answer = raw(desk.address, request_)
    assert text in json.loads(answer.partition(b"\r\n\r\n")[2] or answer)["text"]
    assert call(desk.address, "echo", {"still": "open"}).said == {"still": "open"}


def test_a_message_that_is_too_long_is_refused_with_the_reason(opened: Opened) -> None:
    desk = opened(most_bytes=1 << 20)
    desk.answer("echo", echo)
    for n_bytes in (1 << 20, 40 << 20):
        with pytest.raises(RefusedError, match="longer than the 1048576 bytes"):
            call(desk.address, "echo", {"a": 1}, bytes(n_bytes))
    desk.answer("long", lambda asked: Reply({}, bytes(2000)))
    with pytest.raises(UnreachableError, match="2002 bytes is longer than the 1000 bytes"):
        call(desk.address, "long", {}, most_bytes=1000)


def test_the_cap_sees_every_byte_of_a_message_before_it_leaves(desk: Desk) -> None:
    desk.answer("echo", echo)
    for n_bytes in (0, 1, 200_000):
        paced: list[int] = []
        assert len(call(desk.address, "echo", {}, bytes(n_bytes), pace=paced.append).body) == n_bytes
        assert sum(paced) == n_bytes and max(paced, default=0) <= 65536


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_call_waits_until_something_is_so(desk: Desk) -> None:
    changed, happened, asked_once = threading.Condition(), list[str](), threading.Event()

    def wait(asked: Call) -> Reply:
        asked_once.set()
        with changed:
            return Reply({"is so": asked.until(changed, lambda: bool(happened)), "happened": happened})

    desk.answer("wait", wait)
    assert call(desk.address, "wait", {}, limit_s=0.3).said == {"is so": False, "happened": []}
    asked_once.clear()
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(call, desk.address, "wait", {}, None, 30.0)
        assert asked_once.wait(20)
        with changed:
            happened.append("it")
            changed.notify_all()
        assert later.result(20).said == {"is so": True, "happened": ["it"]}


def test_nobody_listens() -> None:
    silent, address = listener()
    silent.close()
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:\d+ cannot be reached for 'x'") as raised:
        call(address, "x", {})
    assert raised.value.kind == "refused" and isinstance(raised.value, PeerError)


def test_a_desk_that_stays_silent() -> None:
    silent, address = listener()
    with silent, pytest.raises(UnreachableError, match=r"no answer to 'x': silent for 0\.1 s") as raised:
        call(address, "x", {}, limit_s=0.1)
    assert raised.value.kind == "silent"


def test_another_program_listens() -> None:
    other, address = listener()

    def answer() -> None:
        connection, _ = other.accept()
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    with other, pytest.raises(UnreachableError, match="not the desk of a site") as raised:
        call(address, "x", {}, limit_s=20)
    assert raised.value.kind == "foreign"


def test_the_caller_can_give_up(desk: Desk) -> None:
    changed = threading.Condition()

    def wait(asked: Call) -> Reply:
        with changed:
            return Reply({"is so": asked.until(changed, lambda: False)})

    desk.answer("wait", wait)
    looks: list[int] = []

    def look() -> None:
        looks.append(len(looks))
        if len(looks) == 3:
            raise TimeoutError("abandoned")

    with pytest.raises(TimeoutError, match="abandoned"):
        call(desk.address, "wait", {}, limit_s=60, look=look)
    desk.answer("echo", echo)
    assert call(desk.address, "echo", {"next": 1}).said == {"next": 1}  # on a connection of its own


# --- broken connections -----------------------------------------------------------------------------------------------


def test_a_call_that_may_not_arrive_twice_is_sent_once(desk: Desk) -> None:
    arrived: list[int] = []

    def note(asked: Call) -> Reply:
        arrived.append(asked.said["i"])
        return Reply({"n": len(arrived)}, bytes(5000))

    desk.answer("note", note)
    relay = Relay(desk.address, cut_after=(9000, 9000))
    assert call(relay.address, "note", {"i": 1}).said == {"n": 1}
    with pytest.raises(UnreachableError) as raised:
        call(relay.address, "note", {"i": 2})
    assert (raised.value.kind, arrived) == ("cut", [1, 2])
    assert call(relay.address, "note", {"i": 3}).said == {"n": 3}
    assert call(relay.address, "note", {"i": 4}, repeatable=True).said == {"n": 5}
    assert (arrived, relay.connections) == ([1, 2, 3, 4, 4], 3)
    relay.close()


def test_a_connection_that_the_desk_has_closed_is_not_used_again(opened: Opened) -> None:
    first = opened()
    first.answer("echo", echo)
    assert call(first.address, "echo", {"n": 1}).said == {"n": 1}
    first.close(0.1)
    second = opened(int(first.address.rpartition(":")[2]))  # the port is free at once
    assert second.address == first.address
    second.answer("echo", echo)
    assert call(second.address, "echo", {"n": 2}).said == {"n": 2}


# --- strangers --------------------------------------------------------------------------------------------------------


def test_strangers_get_the_error_on_their_own_side(opened: Opened) -> None:
    arrived: list[Identity] = []

    def check(caller: Identity, name: str) -> None:
        if caller.run != "run 1":
            raise RefusedError(f"site {caller.site!r} belongs to run {caller.run!r} and not to 'run 1'", "stranger")
        if caller.incarnation != "b2":
            raise RefusedError(f"{name!r}: another process of site {caller.site!r} is newer", "old process")

    def note(asked: Call) -> Reply:
        arrived.append(asked.caller)
        return Reply({"run": "run 1"})

    desk = opened(check=check)
    desk.answer("note", note)
    desk.answer("who", note, for_strangers=True)
    member = Identity("run 1", "b", "b2")
    kinds: list[str] = []
    for caller in (Identity(), Identity("run 2", "b", "b2"), Identity("run 1", "b", "b1")):
        with pytest.raises(RefusedError) as raised:
            call(desk.address, "note", {}, bytes(3 << 20), caller=caller)
        kinds.append(raised.value.kind)
    assert (kinds, arrived) == (["stranger", "stranger", "old process"], [])
    assert call(desk.address, "note", {}, caller=member).said == {"run": "run 1"}
    assert call(desk.address, "who", {}).said == {"run": "run 1"}
    assert arrived == [member, Identity()]


# --- opening and closing ----------------------------------------------------------------------------------------------


def test_a_range_of_ports(opened: Opened) -> None:
    first = opened()
    port = int(first.address.rpartition(":")[2])
    with pytest.raises(ConfigurationError, match=f"cannot listen at 127.0.0.1, port {port}: Address already in use"):
        opened(port)
    with pytest.raises(ConfigurationError, match=f"one of the ports {port}-{port}|port {port}: Address"):
        opened(ports=PortRange(port, port))
    last = min(65535, port + 50)
    second = opened(ports=PortRange(port, last))
    assert port < int(second.address.rpartition(":")[2]) <= last


def test_a_closed_desk_ends_the_calls_that_wait(opened: Opened) -> None:
    desk = opened()
    changed, waiting = threading.Condition(), threading.Barrier(9)

    def wait(asked: Call) -> Reply:
        waiting.wait(20)
        with changed:
            return Reply({"is so": asked.until(changed, lambda: False)})

    desk.answer("wait", wait)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(call, desk.address, "wait", {}, None, 60.0) for _ in range(8)]
        waiting.wait(20)
        desk.close(20)
        errors = [each.exception(20) for each in calls]
    assert {error.kind for error in errors if isinstance(error, RefusedError)} == {"closing"} and len(errors) == 8
    with pytest.raises(UnreachableError):
        call(desk.address, "wait", {})


def test_a_desk_does_not_wait_for_handlers_that_hang(opened: Opened) -> None:
    desk = opened()
    waiting, go_on = threading.Event(), threading.Event()

    def hang(asked: Call) -> Reply:
        waiting.set()
        go_on.wait(60)
        return Reply()

    desk.answer("hang", hang)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(call, desk.address, "hang", {}, None, 60.0)
        assert waiting.wait(20)
        desk.close(0.1)
        error = later.exception(20)
    go_on.set()
    assert isinstance(error, UnreachableError) and error.kind in ("cut", "foreign")
