"""``lightning-parablock lighthouse``: its mistakes; that it serves is tested where processes ask it."""

from __future__ import annotations

import inspect
import signal
import socket

import pytest

from lightning_parablock.cli import main
from lightning_parablock.cli.commands import lighthouse
from lightning_parablock.cli.commands.lighthouse import SILENCE_S
from lightning_parablock.elastic.lighthouse import Lighthouse
from lightning_parablock.membership import descriptors
from lightning_parablock.settings import Settings


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["lighthouse", "--host", "127.0.0.1", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {socket.gethostname()} cannot open a lighthouse at 127.0.0.1, port {port}: ")
    assert "Address already in use" in error and "choose another port" in error


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--port", "65536"], "port must be 0 to 65535, got 65536"),
        (["--port", "-1"], "port must be 0 to 65535, got -1"),
        (["--silence_s", "0"], "silence_s must be above 0 seconds, got 0"),
    ],
)
def test_values_that_cannot_be(capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
    assert main(["lighthouse", *words]) == 2
    assert capsys.readouterr().err == f"error: {text}\n"


def test_a_misspelt_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lighthouse", "--prt", "3"])
    assert ended.value.code == 2 and "--port" in capsys.readouterr().err


def test_the_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = list[None]()
    monkeypatch.setattr(descriptors, "raise_limit", lambda: raised.append(None))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["lighthouse", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1])]) == 2
    assert raised == [None]


def test_signals_do_afterwards_what_they_did_before() -> None:
    before = [signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["lighthouse", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1])]) == 2
    assert [signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("address", "shown", "is_any"),
    [("0.0.0.0", socket.gethostname(), True), ("10.81.0.1", "10.81.0.1", False), ("fd00::1", "[fd00::1]", False)],
)
def test_it_says_where_it_listens_and_which_option_names_that(
    address: str, shown: str, is_any: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    lighthouse._say_where(address, 29510)
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith(f"lighthouse: listens at {shown}:29510. Every site names it: the option lighthouse")
    assert more == ([f"Instead of {shown}, any name or address of this machine will do that all sites reach."] * is_any)


def test_the_lighthouse_and_the_sites_wait_equally_long() -> None:
    assert Settings().silence_s == SILENCE_S == inspect.signature(Lighthouse).parameters["silence_s"].default
