"""One rank of the fits that test_odd_steps.py starts: one client has nothing to train on, or no number for a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tests.strategy.scenarios.toys import BATCHES, N_RANKS, RANK, STEPS, TASK, epoch_loss, on_all, oracle, run, strategy
from tests.support.lightning_run import TaskModule, expected_weights
from tests.support.scenarios import Scenario, spoiling
from tests.tasks import adamw_default, assert_same_bits, poisoned_task


class Silent(TaskModule):
    """Client 1 has nothing to train on in two of three batches, and in all of the second round."""

    def __init__(self) -> None:
        super().__init__(TASK, adamw_default)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) if has_loss(RANK, self.global_step) else None


def has_loss(client: int, step: int) -> bool:
    return client == 0 or (step % 3 == 0 and step // 4 != 1)


def returns_none() -> None:
    module = run(Silent(), used=strategy(weighting="samples"))
    assert_same_bits(module.weights(), oracle(trains=has_loss, samples=lambda client, step: 1))
    records = module.trainer.strategy.round_records  # type: ignore[attr-defined]
    assert sum(record.samples for record in records) == sum(has_loss(RANK, step) for step in range(STEPS))


class OneHead(TaskModule):
    """The losses of client 1 depend on the first block alone in every second step."""

    def __init__(self) -> None:
        super().__init__(TASK, adamw_default)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return one_head(self.model, RANK, self.global_step)


def one_head(model: nn.Module, client: int, step: int) -> Tensor:
    if client == 0 or step % 2:
        return epoch_loss(model, client, step)
    assert isinstance(model, nn.Sequential)
    return model[0](TASK.batch(client, step % BATCHES)[0]).square().mean()


def unreached() -> None:
    assert_same_bits(run(OneHead()).weights(), oracle(loss_fn=one_head))


class Poisoned(TaskModule):
    """The loss of client 1 is not a number in one batch of each epoch."""

    def __init__(self) -> None:
        super().__init__(POISONED, adamw_default)


POISONED = poisoned_task(TASK, (1, 5))


def skipped(**options: Any) -> Callable[[], None]:
    def scenario() -> None:
        used = strategy(nonfinite_delta="skip", **options)
        module = run(Poisoned(), used=used)
        expected = expected_weights(
            POISONED,
            used.settings,
            n_clients=N_RANKS,
            total_steps=STEPS,
            loss_fn=lambda model, client, step: POISONED.loss_fn(model, client, step % BATCHES),
        )
        assert_same_bits(module.weights(), expected)
        seen = on_all([record.round for record in used.round_records if record.nonfinite])
        assert seen == [[], [1, 3]]

    return scenario


@spoiling
def stopped() -> None:
    """Afterwards the clients are apart."""
    try:
        run(Poisoned())
    except Exception as error:
        print(f"STOPPED {type(error).__name__}: {error}", flush=True)


SCENARIOS: dict[str, Scenario] = {
    "training_step returns None": returns_none,
    "a loss that does not reach the block": unreached,
    "skip": skipped(),
    "skip, star, delay 0, int8": skipped(topology="star", delay_steps=0, compression="int8"),
    "skip, kept state": skipped(block_optimizer_state="keep", delay_steps=6),
    "stopped": stopped,
}
