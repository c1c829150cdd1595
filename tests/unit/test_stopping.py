"""What one process does with the signals it gets."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_parablock.membership.stop_point import StopPoint
from lightning_parablock.strategy import stopping
from lightning_parablock.strategy.stopping import Stopping


@pytest.fixture
def alone() -> Iterator[Stopping]:
    nothing: Any = None
    made = Stopping(nothing, nothing, StopPoint((), lambda _: None), lambda: None)
    before = signal.getsignal(signal.SIGINT)
    made.open()
    yield made
    made.close()
    assert signal.getsignal(signal.SIGINT) is before
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and thread.is_alive()]


def test_ctrl_c_again_ends_at_once_and_a_launchers_copy_of_it_does_not(
    alone: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)  # the same one, passed on
    monkeypatch.setattr(stopping, "_SAME_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_after_the_limit_the_process_ends_in_the_middle_of_what_it_does(
    alone: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stopping.LIMITS_S, signal.SIGINT, 0.2)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        threading.Event().wait(60)


class Files:
    def hpc_save_path(self, folder: str) -> str:
        return f"{folder}/hpc_ckpt_1.ckpt"


class Connector:
    """Saves and requeues as Lightning does, and meanwhile does what a test asks for."""

    received_sigterm = False

    def __init__(self) -> None:
        self.requeued: list[int] = []
        self.meanwhile: list[Callable[[], None]] = []

    def _slurm_sigusr_handler_fn(self, signum: int, _: Any) -> None:
        self.requeued.append(signum)
        if self.meanwhile:
            self.meanwhile.pop(0)()


class OneRank:
    """The strategy of a run with one process."""

    site_names = ()

    def __init__(self) -> None:
        self.meanwhile: list[Callable[[], None]] = []

    def gather_objects(self, own: Any) -> list[Any]:
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return [own]

    def broadcast(self, value: str) -> str:
        return value


class OneProcess:
    def __init__(self, folder: Any) -> None:
        self.saved: list[str] = []
        self.connector, self.files, self.ranks = Connector(), Files(), OneRank()
        trainer: Any = SimpleNamespace(
            _signal_connector=self.connector,
            _checkpoint_connector=self.files,
            default_root_dir=str(folder),
            global_step=5,
            save_checkpoint=self.saved.append,
        )
        ranks: Any = self.ranks
        self.point = StopPoint((), lambda _: None)
        self.stopping = Stopping(ranks, trainer, self.point, lambda: None)


@pytest.fixture
def process(tmp_path: Any) -> Iterator[OneProcess]:
    made = OneProcess(tmp_path)
    yield made
    made.stopping.close()


def test_signals_while_a_run_is_requeued_are_obeyed_at_the_next_batch(process: OneProcess) -> None:
    """SLURM's signal comes twice, and `scontrol requeue` lets SLURM send SIGTERM."""
    own, connector = process.stopping, process.connector
    connector.meanwhile = [lambda: own.note(signal.SIGUSR1), lambda: own.note(signal.SIGTERM)]
    own.note(signal.SIGUSR1)
    own.pass_batch()
    own.pass_batch()
    assert connector.requeued == [signal.SIGUSR1] * 2 and not process.saved
    with pytest.raises(SIGTERMException) as caught:
        own.pass_batch()
    assert caught.value.code == 143
    assert [path.rpartition("/")[2] for path in process.saved] == [stopping.FILE_NAME]


def test_a_signal_while_the_clients_gather_theirs_is_obeyed_at_the_next_batch(process: OneProcess) -> None:
    own = process.stopping
    process.ranks.meanwhile = [lambda: own.note(signal.SIGTERM)]
    own.note(signal.SIGUSR1)
    own.pass_batch()
    assert process.connector.requeued == [signal.SIGUSR1]
    with pytest.raises(SIGTERMException):
        own.pass_batch()


def test_a_stop_whose_signal_was_obeyed_a_batch_before_does_nothing(process: OneProcess) -> None:
    """A signal between the agreed batch and the gathering of signals is gathered, and asks for another batch."""
    own = process.stopping
    pass_batch = process.point.pass_batch

    def noted_late(check: Callable[[], object]) -> bool:
        is_reached = pass_batch(check)
        if is_reached and not process.connector.requeued:
            own.note(signal.SIGUSR1)
        return is_reached

    process.point.pass_batch = noted_late  # type: ignore[method-assign]
    own.note(signal.SIGUSR1)
    for _ in range(3):
        own.pass_batch()
    assert process.connector.requeued == [signal.SIGUSR1]


def test_ctrl_c_again_while_the_clients_save_ends_at_once(process: OneProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    own = process.stopping
    monkeypatch.setattr(stopping, "_SAME_S", 0.0)
    process.ranks.meanwhile = [lambda: own.note(signal.SIGINT)]
    own.note(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        own.pass_batch()
    assert not process.saved


def test_a_requeue_that_fails_leaves_lightnings_names_of_files(process: OneProcess) -> None:
    def fail() -> None:
        assert "hpc_save_path" in vars(process.files)
        raise OSError("no scontrol")

    process.connector.meanwhile = [fail]
    process.stopping.note(signal.SIGUSR1)
    with pytest.raises(OSError, match="no scontrol"):
        process.stopping.pass_batch()
    assert not vars(process.files)


class SecondSite:
    """The strategy of the second of two sites; the first one sends what a test lets it."""

    site_names, global_rank = ("a", "b"), 1

    def __init__(self, sent: str) -> None:
        self._sent = sent

    def describe(self, rank: int) -> str:
        return f"site {self.site_names[rank]}"

    def gather_objects(self, own: Any) -> list[Any]:
        return [None, own]

    def broadcast(self, value: str) -> str:
        return self._sent


@pytest.mark.parametrize("sent", ["/home/b/.config/x", "../x", "..", "", "."])
def test_a_site_saves_in_its_own_folder_whatever_path_the_first_one_sends(
    process: OneProcess, sent: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own: Any = process.stopping
    own._ranks = SecondSite(sent)
    own.note(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        own.pass_batch()
    assert not process.saved and not own.has_saved
    assert "site a saves as " in caplog.text and f"leads out of the folder {tmp_path}" in caplog.text


def test_a_site_saves_in_its_own_folder_under_the_first_ones_name(process: OneProcess, tmp_path: Any) -> None:
    own: Any = process.stopping
    own._ranks = SecondSite("stopped.ckpt")
    own.note(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        own.pass_batch()
    assert [str(path) for path in process.saved] == [str(tmp_path / "stopped.ckpt")]
    own._ranks = SecondSite("hpc_ckpt_7.ckpt")
    assert own._path_of_all("/runs/b/hpc_ckpt_1.ckpt") == "/runs/b/hpc_ckpt_7.ckpt"
