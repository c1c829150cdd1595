"""The thread that asks the lighthouse: what it says, and that it ends with its site's part in the run."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lightning_parablock.elastic import watcher as watcher_module
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.watcher import Watcher
from lightning_parablock.errors import ArbiterError, MembershipError, ReplacedError, ResourceError
from tests.elastic.seats import THREE, LoneSeat

LIMIT_S = 60.0


class _Arbiter:
    """One whose lists a test gives; :attr:`is_closed` when this site is not alive for the others any more."""

    def __init__(self, answer: Callable[[Candidate], tuple[Candidate, ...]]) -> None:
        self._answer = answer
        self.has_asked, self.is_closed = threading.Event(), threading.Event()

    def ask(self, me: Candidate, limit_s: float) -> tuple[Candidate, ...]:
        self.has_asked.set()
        return self._answer(me)

    def close(self) -> None:
        self.is_closed.set()


def _replaced(me: Candidate) -> tuple[Candidate, ...]:
    raise ReplacedError("a newer process")


def _broken(me: Candidate) -> tuple[Candidate, ...]:
    raise ZeroDivisionError


@pytest.mark.parametrize("answer", [_replaced, _broken])
def test_a_site_that_cannot_go_on_is_alive_no_longer_although_its_training_does_not_look(
    answer: Callable[[Candidate], tuple[Candidate, ...]],
) -> None:
    seat, arbiter = LoneSeat("a", THREE), _Arbiter(answer)
    watcher = Watcher(seat, arbiter, lambda: 1, lambda: None)
    watcher.start()
    assert arbiter.is_closed.wait(LIMIT_S)
    assert seat.error is not None
    watcher.close(LIMIT_S)


def test_neither_is_one_whose_part_another_thread_has_ended() -> None:
    seat, arbiter = LoneSeat("a", THREE), _Arbiter(lambda me: (me,))
    watcher = Watcher(seat, arbiter, lambda: 1, lambda: None)
    watcher.start()
    assert arbiter.has_asked.wait(LIMIT_S) and not arbiter.is_closed.is_set()
    seat.fail(MembershipError("generation 1 cannot be opened here"))
    assert arbiter.is_closed.wait(LIMIT_S)
    watcher.close(LIMIT_S)


@pytest.mark.parametrize("in_rounds", [False, True])
def test_what_a_lighthouse_without_a_list_means_depends_on_whether_the_run_has_begun(
    in_rounds: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seat = LoneSeat("a", THREE)
    seat.in_rounds = in_rounds
    Watcher(seat, _Arbiter(lambda me: ()), lambda: 1, lambda: None)._note_away(ArbiterError("no list", is_away=False))
    meanwhile = "; until then training continues, but no site can be replaced or admitted"
    assert caplog.messages == [f"parablock: no list{meanwhile if in_rounds else ''}"]


def test_a_site_that_runs_out_of_open_files_saves_the_model_with_those_it_has_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    class Short:
        def shortage(self) -> str:
            return "1000 of 1024 open files and connections are in use"

        def release(self) -> None:
            released.set()

    monkeypatch.setattr(watcher_module, "Descriptors", Short)
    seat, arbiter = LoneSeat("a", THREE), _Arbiter(lambda me: (me,))
    watcher = Watcher(seat, arbiter, lambda: 7, lambda: None)
    watcher.start()
    assert arbiter.is_closed.wait(LIMIT_S) and released.is_set()
    with pytest.raises(
        ResourceError, match=r"site 'a' cannot continue in round 7: 1000 of 1024 open files .*ulimit -n"
    ):
        seat.check()
    watcher.close(LIMIT_S)
