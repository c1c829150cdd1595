"""One rank of the fits that test_uneven.py starts: clients whose data differ in size, order and kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_parablock.errors import ConfigurationError
from tests.strategy.scenarios.toys import (
    BATCHES,
    N_RANKS,
    RANK,
    STEPS,
    TASK,
    Watching,
    batches,
    on_all,
    oracle,
    run,
    steps_made,
    strategy,
)
from tests.support.lightning_run import Steps, TaskModule, trainer_for
from tests.tasks import adamw_default, assert_same_bits


class Stream(IterableDataset[tuple[int, int]]):
    """So many samples of this client, and no length; ``n`` None never ends."""

    def __init__(self, n: int | None) -> None:
        self.n = n

    def __iter__(self) -> Iterator[tuple[int, int]]:
        step = 0
        while self.n is None or step < self.n:
            yield RANK, step
            step += 1


def stream(n: int | None) -> DataLoader[Any]:
    return DataLoader(Stream(n), batch_size=1)


def mine(*of_each_rank: Any) -> Any:
    """What this rank has."""
    return of_each_rank[RANK]


def expected(n_batches: int, total_steps: int) -> dict[str, Tensor]:
    return oracle(total_steps, lambda model, client, step: TASK.loss_fn(model, client, step % n_batches))


def streams_of_unknown_lengths() -> None:
    """The first that ends, ends the epoch for all; lengths on both sides of the window of four batches, and on it."""
    for one, other in ((9, 14), (12, 8), (3, 5), (7, 7)):
        shortest = min(one, other)
        module = run(train=stream(mine(one, other)), val=stream(mine(2, 3)))
        assert steps_made(module) == 2 * shortest
        assert_same_bits(module.weights(), expected(shortest, 2 * shortest))


def streams_and_limits() -> None:
    """Endless streams end by max_steps; a limit counts before the end of the stream; validation in between."""
    for train, options, steps, n_batches in (
        (stream(mine(None, None)), {"max_steps": 10}, 10, 10),
        (stream(mine(9, None)), {"max_steps": 14, "max_epochs": -1}, 14, 9),
        (stream(mine(9, 14)), {"limit_train_batches": 5}, 10, 5),
        (stream(mine(9, 14)), {"val_check_interval": 3}, 18, 9),
        (stream(mine(9, 14)), {"reload_dataloaders_every_n_epochs": 1}, 18, 9),
    ):
        module = run(train=train, **options)
        assert steps_made(module) == steps, options
        assert_same_bits(module.weights(), expected(n_batches, steps))


def a_length_on_one_client_only() -> None:
    """For training and validation, either way round."""
    for train, val in (
        (mine(batches(9), stream(14)), mine(stream(2), batches(3))),
        (mine(stream(9), batches(14)), mine(batches(2), stream(3))),
    ):
        module = run(train=train, val=val)
        assert steps_made(module) == 18
        assert_same_bits(module.weights(), expected(9, 18))


class Batched(TaskModule):
    """Trains on real batches of samples, which may be short, by their mean loss."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        clients, steps = (part.tolist() for part in batch)
        return mean_loss(self.model, clients[0], steps)


def mean_loss(model: nn.Module, client: int, samples: list[int]) -> Tensor:
    losses = [TASK.loss_fn(model, client, sample) for sample in samples]
    return torch.stack(losses).mean()


def short_last_batches() -> None:
    """Five and eleven samples in batches of two: three batches each, and client 0's last has one sample."""
    sizes = (5, 11)
    loader = DataLoader(Steps(sizes[RANK], RANK), batch_size=2)
    module = run(Batched(TASK, adamw_default), train=loader)

    def loss(model: nn.Module, client: int, step: int) -> Tensor:
        first = 2 * (step % 3)
        return mean_loss(model, client, list(range(first, min(first + 2, sizes[client]))))

    assert steps_made(module) == 6
    assert_same_bits(module.weights(), oracle(6, loss))


class Pairs(TaskModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch["b"], batch_idx)


def several_loaders() -> None:
    """Each is cut to its own shortest: 8 batches, cycled, and 16."""
    loaders = {"a": batches(mine(8, 12)), "b": batches(mine(20, 16))}
    module = run(Pairs(TASK, adamw_default), train=loaders, max_epochs=1)
    assert steps_made(module) == 16
    assert_same_bits(module.weights(), expected(16, 16))
    loaders = {"a": stream(mine(8, 12)), "b": batches(mine(20, 16))}
    module = run(Pairs(TASK, adamw_default), train=CombinedLoader(loaders, "min_size"), max_epochs=1)
    assert steps_made(module) == 8
    assert_same_bits(module.weights(), expected(8, 8))


def workers_that_stay() -> None:
    """A loader with persistent workers comes through several epochs and two fits."""
    n = mine(5, 8)
    loader = DataLoader(
        Steps(n, RANK), batch_size=1, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    module = run(train=loader)
    assert_same_bits(module.weights(), expected(5, 10))
    module = run(train=loader)
    assert_same_bits(module.weights(), expected(5, 10))


def loaders_are_shortened_anew() -> None:
    """Reloaded every epoch with other lengths: 4 and 6 batches, then 7 and 5."""

    class Reloading(TaskModule):
        def train_dataloader(self) -> Any:
            return batches(mine(4, 6) if self.current_epoch == 0 else mine(7, 5))

        def val_dataloader(self) -> Any:
            return batches(3)

    module = Reloading(TASK, adamw_default)
    trainer_for(strategy(), devices=N_RANKS, max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(module)
    assert steps_made(module) == 9
    loss = lambda model, client, step: TASK.loss_fn(model, client, step if step < 4 else step - 4)  # noqa: E731
    assert_same_bits(module.weights(), oracle(9, loss))


def means_over_all_samples() -> None:
    """``sync_dist=True`` weighs by samples: client 0 has three samples in two batches, client 1 two."""

    def log(module: Watching, batch_idx: int) -> None:
        values = ([1.0, 2.0], [10.0])[RANK]
        module.log("value", values[batch_idx], sync_dist=True, batch_size=([2, 1], [2])[RANK][batch_idx])

    module = run(Watching(log), val=DataLoader(Steps(3 - RANK, RANK), batch_size=2))
    exact = (2 * 1.0 + 1 * 2.0 + 2 * 10.0) / 5
    assert on_all(float(module.trainer.callback_metrics["value"])) == [float(torch.tensor(exact))] * N_RANKS
    assert_same_bits(module.weights(), expected(BATCHES, STEPS))


def meeting_in_uneven_validation() -> None:
    """A collective at each batch, where clients have different numbers of batches, would hang."""

    def log(module: Watching, batch_idx: int) -> None:
        module.log("value", 1.0, on_step=True, on_epoch=True, sync_dist=True)

    for val in (batches(2 + RANK), stream(2)):
        says = raises(ConfigurationError, lambda val=val: run(Watching(log), val=val))
        assert "a reduce of all clients in a step of validation or test" in says, says
    module = run(Watching(log))  # the same number on both: nothing to refuse
    assert_same_bits(module.weights(), expected(BATCHES, STEPS))


def no_data() -> None:
    """A client without a batch ends the run for all with the same words, before training."""
    for train in (mine(stream(0), stream(5)), mine(stream(0), batches(5))):
        says = raises(ConfigurationError, lambda train=train: run(train=train))
        assert "the train data of client 0 have no batch (batches of each client: 0, " in says, says
    says = raises(ConfigurationError, lambda: run(val=batches(3 * RANK)))
    assert "the sanity_check data of client 0 have no batch (batches of each client: 0, 3)" in says, says


def raises(kind: type[Exception], attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def clients_that_go_on() -> None:
    """A client without data left idles to the epoch's end: it moves nothing, has no weight, and holds the same model.

    The shorter client ends in the middle of a round (5 batches), at a round's end (4), or rounds before the other (3).
    Weight decay and momentum would move it if an idle step were a step of its optimizer.
    """
    decaying = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)  # noqa: E731
    for one, other, kind in ((5, 11, batches), (12, 4, batches), (3, 14, batches), (9, 4, stream), (3, 10, stream)):
        lengths, longest = (one, other), max(one, other)
        module = run(
            TaskModule(TASK, decaying),
            train=kind(mine(one, other)),
            val=batches(mine(2, 3)),
            used=strategy(uneven_clients="go_on"),
            val_check_interval=2,
        )
        assert steps_made(module) == module.trainer.global_step == 2 * longest
        expected = oracle(
            2 * longest,
            lambda model, client, step, n=longest: TASK.loss_fn(model, client, step % n),
            decaying,
            trains=lambda client, step, n=longest, own=lengths: step % n < own[client],
        )
        assert_same_bits(module.weights(), expected)


def going_on_with_accumulation() -> None:
    """5 and 12 batches, two per step: the third step of the shorter one has half of its batches, and is a step."""
    used = strategy(uneven_clients="go_on")
    module = run(train=batches(mine(5, 12)), used=used, accumulate_grad_batches=2, max_epochs=1)
    assert steps_made(module) == 6

    def loss(model: nn.Module, client: int, step: int) -> Tensor:
        own = [b for b in (2 * step, 2 * step + 1) if b < (5, 12)[client]]
        return sum(TASK.loss_fn(model, client, b) / 2 for b in own)  # type: ignore[return-value]

    trains = lambda client, step: 2 * step < (5, 12)[client]  # noqa: E731
    assert_same_bits(module.weights(), oracle(6, loss, trains=trains))


def weights_by_samples() -> None:
    """5 and 11 samples in batches of two, short last ones: 3 and 6 steps an epoch, in rounds of four."""
    sizes = (5, 11)
    used = strategy(uneven_clients="go_on", weighting="samples")
    loader = DataLoader(Steps(sizes[RANK], RANK), batch_size=2)
    module = run(Batched(TASK, adamw_default), train=loader, used=used)
    assert steps_made(module) == 12

    def own(client: int, step: int) -> list[int]:
        """The samples of a step."""
        first = 2 * (step % 6)
        return list(range(first, min(first + 2, sizes[client])))

    def weighted(samples: Callable[[int, int], int] | None) -> dict[str, Tensor]:
        return oracle(
            12,
            lambda model, client, step: mean_loss(model, client, own(client, step)),
            trains=lambda client, step: bool(own(client, step)),
            samples=samples,
        )

    assert_same_bits(module.weights(), weighted(lambda client, step: len(own(client, step))))
    says = raises(AssertionError, lambda: assert_same_bits(module.weights(), weighted(None)))
    assert "bits differ" in says


def weights_by_what_the_module_counts() -> None:
    """Batches of 0-dimensional tensors, which only the module can count."""
    sizes = (8, 24)
    data = [{"k": torch.tensor(3.0), "client": torch.tensor(RANK), "step": torch.tensor(step)} for step in range(6)]

    class Counting(TaskModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step([batch["client"], batch["step"]], batch_idx)

        def parablock_batch_size(self, batch: Any) -> int:
            return sizes[RANK]

    loader: Any = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    module = run(Counting(TASK, adamw_default), train=loader, used=strategy(weighting="samples"))
    assert_same_bits(module.weights(), oracle(12, epoch_of(6), samples=lambda client, step: sizes[client]))


def epoch_of(n_steps: int) -> Any:
    return lambda model, client, step: TASK.loss_fn(model, client, step % n_steps)


def several_loaders_cannot_go_on() -> None:
    """Refused before training, on every rank; equal lengths are welcome."""
    loaders = {"a": batches(mine(8, 12)), "b": batches(6)}
    used = lambda: strategy(uneven_clients="go_on")  # noqa: E731
    says = raises(ConfigurationError, lambda: run(Pairs(TASK, adamw_default), train=loaders, used=used()))
    assert "there are 2 training loaders" in says and "uneven_clients='shorten'" in says
    module = run(Pairs(TASK, adamw_default), train={"a": batches(8), "b": batches(16)}, used=used(), max_epochs=1)
    assert_same_bits(module.weights(), expected(16, 16))


SCENARIOS: dict[str, Callable[[], None]] = {
    "streams of unknown lengths": streams_of_unknown_lengths,
    "streams and limits": streams_and_limits,
    "a length on one client only": a_length_on_one_client_only,
    "short last batches": short_last_batches,
    "several loaders": several_loaders,
    "clients that go on": clients_that_go_on,
    "going on with accumulation": going_on_with_accumulation,
    "weights by samples": weights_by_samples,
    "weights by what the module counts": weights_by_what_the_module_counts,
    "several loaders cannot go on": several_loaders_cannot_go_on,
    "workers that stay": workers_that_stay,
    "loaders are shortened anew": loaders_are_shortened_anew,
    "means over all samples": means_over_all_samples,
    "meeting in uneven validation": meeting_in_uneven_validation,
    "no data": no_data,
}
