"""A real lighthouse and real processes: killed, new, of other runs, and while the lighthouse is away."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from lightning_parablock.elastic import torchft
from lightning_parablock.elastic.arbiter import Candidate, new_incarnation
from lightning_parablock.elastic.lighthouse import Lighthouse
from lightning_parablock.elastic.lighthouse_server import LighthouseServer
from lightning_parablock.errors import ArbiterError, ConfigurationError, ReplacedError
from tests.elastic.conftest import SILENCE_S, Process
from tests.support.launch import ROOT

Start = Callable[..., Process]
Make = Callable[..., Lighthouse]
LIMIT_S = 60.0


DESK = socket.create_server(("127.0.0.1", 0))
"""A process listens at the desk of every candidate that is not said to be gone."""


def candidate(site: str, **said: object) -> Candidate:
    one = Candidate(site, new_incarnation(), f"127.0.0.1:{DESK.getsockname()[1]}", run="r")
    return replace(one, **said)  # type: ignore[arg-type]


def lists_until(process: Process, last: str) -> list[str]:
    """The lists that a site prints, up to one."""
    seen: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line.strip())
        if seen[-1] == last:
            return seen
    raise AssertionError(f"ended after {seen}")


def site(start: Start, port: int, name: str, run: str = "r") -> Process:
    return start("-m", "tests.elastic.site", f"127.0.0.1:{port}", name, run)


def lighthouse(start: Start, port: int = 0) -> tuple[Process, int]:
    """The command in a process of its own, and its port."""
    process = start(*f"-m lightning_parablock lighthouse --host 127.0.0.1 --port {port} --silence_s 3".split())
    assert process.stdout is not None
    said = re.match(r"lighthouse: listens at \S+:(\d+)\.", process.stdout.readline())
    assert said is not None
    return process, int(said[1])


def asked_until(arbiter: Lighthouse, me: Candidate, sites: str) -> tuple[Candidate, ...]:
    """Ask until a list has these sites."""
    while True:
        found = arbiter.ask(me, LIMIT_S)
        if " ".join(one.site for one in found) == sites:
            return found


# --- one process ------------------------------------------------------------------------------------------------------


def test_everybody_gets_the_same_list_with_what_each_says_of_itself(server: LighthouseServer, arbiter: Make) -> None:
    mine = [candidate(name, client=index, opened=4, facts="f") for index, name in enumerate("abc")]
    arbiters = [arbiter(server.port) for _ in mine]
    with ThreadPoolExecutor(3) as pool:
        lists = list(pool.map(lambda i: asked_until(arbiters[i], mine[i], "a b c"), range(3)))
    assert lists == [tuple(mine)] * 3
    changed = [replace(each, sealed=5, is_ready=True) for each in mine]
    with ThreadPoolExecutor(3) as pool:
        lists = list(pool.map(lambda i: arbiters[i].ask(changed[i], LIMIT_S), range(3)))
    assert [found[index] for index, found in enumerate(lists)] == changed  # each finds its own newest word


def test_nobody_waits_for_a_process_that_asks_for_nothing_now(server: LighthouseServer, arbiter: Make) -> None:
    a, b = candidate("a"), candidate("b")
    arbiter(server.port).ask(b, LIMIT_S)  # and is busy with something else from now on
    mine = arbiter(server.port)
    assert [mine.ask(replace(a, opened=n), LIMIT_S) for n in range(6)][1:] == [
        (replace(a, opened=n), b) for n in range(1, 6)
    ]


def test_the_older_of_two_processes_of_a_site_hears_that_it_is_replaced(
    server: LighthouseServer, arbiter: Make
) -> None:
    older, newer = candidate("a", incarnation="1"), candidate("a", incarnation="2")
    first, second = arbiter(server.port), arbiter(server.port)
    assert first.ask(older, LIMIT_S) == (older,)
    assert second.ask(newer, LIMIT_S) == (newer,)
    with pytest.raises(ReplacedError, match="a newer process of site 'a'"):
        asked_until(first, older, "none")


def test_processes_of_other_runs_and_programs_are_no_part_of_the_list(server: LighthouseServer, arbiter: Make) -> None:
    a, b = candidate("a"), candidate("b", run="another")
    foreign = torchft.coordination().LighthouseClient(f"http://127.0.0.1:{server.port}", timedelta(seconds=5))
    ended = threading.Event()

    def ask_on() -> None:
        while not ended.is_set():
            foreign.quorum("0", timedelta(seconds=LIMIT_S), data={"step": 3})

    other = threading.Thread(target=ask_on, daemon=True)
    other.start()
    theirs, mine = arbiter(server.port), arbiter(server.port)
    assert theirs.ask(b, LIMIT_S) == (b,)
    assert [mine.ask(a, LIMIT_S) for _ in range(3)] == [(a,)] * 3
    new = replace(a, run="")
    assert asked_until(mine, new, "a b") == (new, b)
    ended.set()
    other.join(LIMIT_S)


def test_a_lighthouse_that_is_away_is_found_again(arbiter: Make, started: Start) -> None:
    first, port = lighthouse(started)
    a, b = candidate("a"), candidate("b")
    mine, theirs = arbiter(port), arbiter(port)
    theirs.ask(b, LIMIT_S)
    asked_until(mine, a, "a b")
    first.kill()
    first.wait()
    said = rf"127\.0\.0\.1:{port} cannot be reached for .* lighthouse --port {port}"
    with pytest.raises(ArbiterError, match=said) as raised:
        while True:
            mine.ask(a, 0.5)
    assert raised.value.is_away
    lighthouse(started, port)
    # It knows no process at first, and yet no list lacks the other process.
    assert [mine.ask(a, LIMIT_S) for _ in range(3)] == [(a, b)] * 3


def test_a_lighthouse_that_was_never_there(arbiter: Make) -> None:
    with pytest.raises(ArbiterError, match="cannot be reached"):
        arbiter(1).ask(candidate("a"), 0.3)


def test_a_list_that_another_process_holds_up(server: LighthouseServer, arbiter: Make) -> None:
    client = torchft.coordination().LighthouseClient(f"http://127.0.0.1:{server.port}", timedelta(seconds=5))
    for name in "xyz":
        client.heartbeat(name)  # alive, and never asks
    a = candidate("a")
    with pytest.raises(
        ArbiterError, match=r"has given no list of sites within 0\.1 s: it waits for a process"
    ) as raised:
        arbiter(server.port).ask(a, 0.1)
    assert not raised.value.is_away
    assert arbiter(server.port).ask(a, LIMIT_S) == (a,)


def test_without_torchft_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchft._torchft", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for use in (lambda: Lighthouse("hub:29510"), lambda: LighthouseServer("127.0.0.1", 0, 5.0)):
        with pytest.raises(ConfigurationError, match=r"pip install 'lightning-parablock\[elastic\]'") as refused:
            use()
        (versions,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][
            "elastic"
        ]
        assert f"install it at every site and at the lighthouse: pip install '{versions}'" in str(refused.value)


def test_a_port_in_use(server: LighthouseServer) -> None:
    with pytest.raises(ConfigurationError, match=f"port {server.port}: Address already in use"):
        LighthouseServer("127.0.0.1", server.port, SILENCE_S)


@pytest.mark.parametrize(("level", "is_quiet"), [(None, True), ("info", False)])
def test_the_lighthouse_is_quiet_unless_the_user_asks_and_brings_nothing_along(
    monkeypatch: pytest.MonkeyPatch, level: str | None, is_quiet: bool
) -> None:
    monkeypatch.delenv("RUST_LOG", raising=False)
    if level is not None:
        monkeypatch.setenv("RUST_LOG", level)
    program = """
import json, os, sys
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.lighthouse import Lighthouse
from lightning_parablock.elastic.lighthouse_server import LighthouseServer
server = LighthouseServer("127.0.0.1", 0, 1.0)
Lighthouse(f"127.0.0.1:{server.port}").ask(Candidate("a", "1", "x:1"), 60)
print(json.dumps([sorted({"torch", "opentelemetry", "torchft"} & set(sys.modules)), os.environ.get("RUST_LOG")]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], level]
    assert (done.stderr == "") == is_quiet


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_end(started: Start, arbiter: Make, sign: signal.Signals) -> None:
    process, port = lighthouse(started)
    a = candidate("a")
    assert arbiter(port).ask(a, LIMIT_S) == (a,)
    process.send_signal(sign)
    assert process.stdout is not None
    assert "ended" in process.stdout.read() and process.wait(LIMIT_S) == 0


def test_a_process_that_is_killed_is_gone_and_one_that_is_silent_is_not_yet(arbiter: Make) -> None:
    patient = LighthouseServer("127.0.0.1", 0, LIMIT_S)
    silent = candidate("s")
    those = [candidate("a"), candidate("b"), candidate("c"), candidate("g", desk="127.0.0.1:1"), silent]
    arbiters = [arbiter(patient.port, LIMIT_S) for _ in those]
    for each, me in zip(arbiters, those, strict=True):
        each.ask(me, LIMIT_S)
    asked_until(arbiters[0], those[0], "a b c g s")
    for each in arbiters[3:]:
        each.close()
    assert asked_until(arbiters[0], those[0], "a b c s")[-1] == silent
    assert arbiters[0].ask(those[0], LIMIT_S)[-1] == silent
    patient.close()


# --- several processes ------------------------------------------------------------------------------------------------


def test_processes_that_come_stop_continue_and_are_killed(
    server: LighthouseServer, arbiter: Make, started: Start
) -> None:
    me, mine = candidate("m"), arbiter(server.port)
    a, b = site(started, server.port, "a"), site(started, server.port, "b")
    asked_until(mine, me, "a b m")
    c = site(started, server.port, "c")
    asked_until(mine, me, "a b c m")
    b.send_signal(signal.SIGSTOP)
    asked_until(mine, me, "a c m")
    b.send_signal(signal.SIGCONT)
    asked_until(mine, me, "a b c m")
    c.kill()
    asked_until(mine, me, "a b m")
    again = site(started, server.port, "c")
    asked_until(mine, me, "a b c m")
    assert lists_until(a, "a b m")[-1] == "a b m"
    assert lists_until(a, "a b c m") and lists_until(b, "a b c m")
    a.kill()
    b.kill()
    mine.close()
    assert lists_until(again, "c")[-1] == "c"


_ENDS_IN_A_CALL = """
import sys, time
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.lighthouse import Lighthouse
from lightning_parablock.errors import ArbiterError

class Slow:  # the interpreter is busy with its end for longer than the call lasts
    def __del__(self, sleep=time.sleep):
        sleep(4.0)

kept, arbiter, me = Slow(), Lighthouse(sys.argv[1], silence_s=2.0), Candidate("a", "1", "127.0.0.1:1", run="r")
while len(arbiter.ask(me, 30.0)) < 2:
    pass
print("both", flush=True)
try:
    while True:
        arbiter.ask(me, 0.7)
except ArbiterError:
    arbiter.close()
"""


def test_a_process_that_ends_while_the_lighthouse_keeps_it_waiting_ends_in_order(started: Start) -> None:
    _, port = lighthouse(started)
    b = site(started, port, "b")
    ending = started("-c", _ENDS_IN_A_CALL, f"127.0.0.1:{port}")
    assert lists_until(ending, "both")
    b.send_signal(signal.SIGSTOP)
    assert ending.wait(timeout=LIMIT_S) == 0
