"""One rank of the runs that test_uneven.py lets fail: client 1 does something by itself, and client 0 must not hang."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_parablock.membership import watch
from tests.strategy.scenarios.toys import RANK, TASK, Do, K, batches, run, strategy
from tests.support.here import SCRATCH
from tests.support.lightning_run import TaskModule
from tests.tasks import adamw_default

STRANGERS: list[socket.socket] = []


def stops() -> None:
    """Its own callback ends the training after five of seven batches."""
    run(callbacks=[Do(on_train_batch_end=stop_after(5))], limit_val_batches=0, max_epochs=3)


def stops_before_validation() -> None:
    """The same, where the other one's next act is to meet all clients in validation, in the same round."""
    run(callbacks=[Do(on_train_batch_end=stop_after(K + 1))], train=batches(K + 2), val=batches(2))


def stops_into_a_reduce() -> None:
    """Client 1 compares weights after its last round while client 0 averages a metric: other kinds, other sizes."""
    run(Meeting(TASK, adamw_default), callbacks=[Do(on_train_batch_end=stop_after(K))], limit_val_batches=0)


def logs_alone() -> None:
    """Client 1 logs one value less, so that a metric would be averaged with a barrier's bytes or another metric."""

    class Logging(TaskModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if RANK == 0 or batch_idx != K + 1:
                self.log("value", 1.0, on_step=True, sync_dist=True)
            else:
                self.all_gather(torch.zeros(3, dtype=torch.float64))
            return super().training_step(batch, batch_idx)

    run(Logging(TASK, adamw_default))


def is_late() -> None:
    """Client 1 takes longer for a step than the others wait."""
    given_up = SCRATCH / "given-up"

    def dawdle(trainer: Trainer, _: Any) -> None:
        ends_s = time.monotonic() + 20
        while RANK == 1 and trainer.global_step == K + 1 and not given_up.exists() and time.monotonic() < ends_s:
            time.sleep(0.05)

    try:
        used = strategy(straggler_timeout_s=3)
        run(callbacks=[Do(on_train_batch_end=dawdle)], used=used, train=batches(3 * K), limit_val_batches=0)
    finally:
        if RANK == 0:
            given_up.touch()


def is_flooded() -> None:
    """A stranger opens more connections to client 0 than it may have open files."""
    if RANK == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
    run(callbacks=[Do(on_train_batch_end=flood)], max_epochs=1000, limit_val_batches=0)


def flood(trainer: Trainer, _: Any) -> None:
    """At one batch client 0 tells its ports and client 1 connects to them."""
    time.sleep(0.05)
    told = SCRATCH / "ports"
    if RANK == 0 and trainer.global_step == K:
        (SCRATCH / "told").write_text(" ".join(map(str, listening_ports())))
        (SCRATCH / "told").rename(told)
    if RANK == 1 and not STRANGERS and told.exists():
        for port in map(int, told.read_text().split()):
            for _ in range(600):
                stranger = socket.socket()
                stranger.setblocking(False)
                stranger.connect_ex(("127.0.0.1", port))
                STRANGERS.append(stranger)


def listening_ports() -> set[int]:
    """The ports of this process, except for those of the store, which does not mind."""
    found = set[int]()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as opened:
            if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.add(opened.getsockname()[1])
    return found - {int(os.environ["MASTER_PORT"])}


def gathers_by_itself() -> None:
    """Both clients call a collective past the strategy, with tensors of different sizes: gloo's thread throws."""
    watch._LAST_RESORT_S = 2.0  # pyright: ignore[reportPrivateUsage]

    def reduce(trainer: Trainer, _: Any) -> None:
        if trainer.global_step == K - 1:
            torch.distributed.all_reduce(torch.zeros(1 + 100_000 * RANK))

    run(callbacks=[Do(on_train_batch_end=reduce)], used=strategy(exchange_timeout_s=3))


def stop_after(step: int) -> Any:
    def action(trainer: Trainer, _: Any) -> None:
        trainer.should_stop = trainer.should_stop or (RANK == 1 and trainer.global_step >= step)
        trainer.limit_val_batches = 0 if trainer.should_stop else trainer.limit_val_batches

    return action


def fails() -> None:
    """It raises, and both clients save on an exception."""

    class Failing(TaskModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if RANK == 1 and self.global_step == K + 1:
                raise ZeroDivisionError("client 1 is broken")
            return super().training_step(batch, batch_idx)

    save = ModelCheckpoint(SCRATCH / "saved", save_on_exception=True, filename="exception", every_n_epochs=99)
    run(Failing(TASK, adamw_default), enable_checkpointing=True, callbacks=[save])


class Meeting(TaskModule):
    """Logs in training what all clients make together."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("value", 1.0, on_step=True, sync_dist=True)
        return super().training_step(batch, batch_idx)


def meets_without_data() -> None:
    """Client 0 has five batches, client 1 six, which it would train on alone."""
    run(Meeting(TASK, adamw_default), used=strategy(uneven_clients="go_on"), train=batches(5 + RANK))


def meets_in_passed_steps() -> None:
    """Client 1 trains on the first step of each round alone."""
    run(Meeting(TASK, adamw_default), used=strategy(own_local_steps=1 if RANK == 1 else None))


class MeetingAtEpochs(TaskModule):
    """Logs in training what all clients average at the end of each epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("value", 1.0, on_step=False, on_epoch=True, sync_dist=True)
        return super().training_step(batch, batch_idx)


def meets_after_skipped_epochs() -> None:
    """Client 1 trains on the first step of each round alone, and an epoch has one step less than a round."""
    used = strategy(own_local_steps=1 if RANK == 1 else None, straggler_timeout_s=5)
    run(MeetingAtEpochs(TASK, adamw_default), used=used, train=batches(K - 1), max_epochs=8)


def meets_after_idle_epochs() -> None:
    """The same without a limit of its own: client 1 has fewer data than the skipped steps of a round."""
    used = strategy(own_local_steps=1, uneven_clients="go_on", straggler_timeout_s=5)
    run(MeetingAtEpochs(TASK, adamw_default), used=used, train=batches(3 * K + 1 if RANK == 0 else 1), max_epochs=8)


def ends_between_two_fits() -> None:
    """Client 1 fails behind its first fit; client 0 comes to its second one."""
    run()
    if RANK == 1:
        raise ZeroDivisionError("client 1 is broken")
    run()


CASES: dict[str, Callable[[], None]] = {
    "stops": stops,
    "stops before validation": stops_before_validation,
    "stops into a reduce": stops_into_a_reduce,
    "logs alone": logs_alone,
    "is late": is_late,
    "is flooded": is_flooded,
    "gathers by itself": gathers_by_itself,
    "fails": fails,
    "meets without data": meets_without_data,
    "meets in passed steps": meets_in_passed_steps,
    "meets after skipped epochs": meets_after_skipped_epochs,
    "meets after idle epochs": meets_after_idle_epochs,
    "ends between two fits": ends_between_two_fits,
}


def saying_so(case: Callable[[], None]) -> Callable[[], None]:
    """A scenario: the case, and a word when it has come to its end."""

    def scenario() -> None:
        case()
        print("fitted", flush=True)

    return scenario


ALONE = {name: saying_so(case) for name, case in CASES.items()}
