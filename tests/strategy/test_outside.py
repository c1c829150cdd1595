"""Parameters outside the block: what a module unfreezes, and what it writes into what nothing trains."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import ConfigurationError, NonFiniteError
from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.training.outside import OutsideParameters
from tests.strategy.test_turns_alone import K as TURN_STEPS
from tests.strategy.test_turns_alone import Net
from tests.strategy.test_turns_alone import fit as fit_turns
from tests.support.lightning_run import TaskModule, expected_weights, fit, patterns_of
from tests.support.ranks import Ranks, ranks_of
from tests.tasks import adamw_default, assert_same_bits, mlp_task, poisoned_task

K, STEPS = 4, 14
MLP = mlp_task()


def strategy_for(**changes: Any) -> ParaBlockStrategy:
    return ParaBlockStrategy(**{"local_steps": K, "blocks": patterns_of(MLP), "seed": 3, **changes})


class Thawing(TaskModule):
    """Sets flags in a hook, as modules do that unfreeze layers one by one."""

    def __init__(self, name: str, hook: str, flag: bool) -> None:
        super().__init__(MLP, adamw_default)
        self.name, self.flag = name, flag
        setattr(self, hook, self.thaw)

    def thaw(self, *_: Any) -> None:
        self.get_parameter(self.name).requires_grad_(self.flag)


def order() -> list[int]:
    return [block_of_round("shuffle", 3, t, 3) for t in range(3)]


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_start", "on_train_batch_start"])
def test_thawing_a_layer_of_another_block_is_refused_before_it_moves(hook: str) -> None:
    name = f"model.{2 * order()[1]}.weight"
    module = Thawing(name, hook, flag=True)
    start = module.weights()
    message = rf"round 0, block .*: requires_grad of '{re.escape(name)}', a parameter of block .*, has become True"
    with pytest.raises(ConfigurationError, match=message):
        fit(MLP, strategy_for(), 0, STEPS, module=module)
    assert_same_bits(module.weights(), start)


def test_thawing_what_is_in_no_block_is_refused() -> None:
    module = Thawing("model.0.weight", "on_train_epoch_start", flag=True)
    module.model[0].requires_grad_(False)
    message = r"requires_grad of 'model\.0\.weight', a parameter in no block, has become True.*before fit"
    with pytest.raises(ConfigurationError, match=message):
        fit(MLP, strategy_for(blocks=2), 0, STEPS, module=module)


def test_freezing_a_layer_in_training_is_refused() -> None:
    """It would be thawed again at the next switch, in silence."""
    name = f"model.{2 * order()[0]}.bias"
    module = Thawing(name, "on_train_epoch_start", flag=False)
    with pytest.raises(ConfigurationError, match=rf"'{re.escape(name)}', .* has become False"):
        fit(MLP, strategy_for(), 0, STEPS, module=module)


class Teacher(TaskModule):
    """A frozen copy of the model that follows it, and is used in the loss."""

    def __init__(self, task: Any = MLP) -> None:
        super().__init__(task, adamw_default)
        self.teacher = task.make_model().requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        for own, followed in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            own.data.mul_(0.9).add_(followed.data * 0.1)
        return super().training_step(batch, batch_idx)


def test_one_client_may_have_a_teacher(caplog: pytest.LogCaptureFixture) -> None:
    module = fit(MLP, strategy_for(), 0, STEPS, module=Teacher())
    assert_same_bits(module.weights(), expected_weights(MLP, strategy_for().settings, n_clients=1, total_steps=STEPS))
    assert "frozen parameter" not in caplog.text


def test_a_skipped_round_that_has_spoiled_a_frozen_parameter_stops_the_run() -> None:
    task = poisoned_task(MLP, (0, 5))
    with pytest.raises(NonFiniteError, match=r"round 1, .*'teacher\..*', a parameter in no block, is not finite, too"):
        fit(task, strategy_for(nonfinite_delta="skip"), 0, STEPS, module=Teacher(task))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_frozen_parameter_that_is_not_finite_ends_a_skipped_turn(value: float) -> None:
    module = nn.Linear(2, 1)
    outside = OutsideParameters(module, [], takes_turns=False, is_alone=True, is_averaged=False)
    outside.check_turn("round 0", discarded=True)
    module.bias.data.fill_(value)
    with pytest.raises(NonFiniteError, match="'bias', a parameter in no block, is not finite"):
        outside.check_turn("round 1", discarded=True)


class Sharing(Net):
    """Clients that take turns would all write into one frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[1].bias.requires_grad_(False)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.layers[1].bias.data += 1  # type: ignore[operator]
        return super().training_step(batch, batch_idx)


def test_clients_that_take_turns_cannot_share_a_frozen_parameter_that_changes() -> None:
    steps: list[int] = []

    class Counts(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            steps.append(trainer.global_step)

    with pytest.raises(ConfigurationError, match=r"round 0, .*'layers\.1\.bias', a parameter in no block, .* a buffer"):
        fit_turns(Sharing(), trainer={"callbacks": [Counts()]})
    assert len(steps) < TURN_STEPS  # noticed at the end of the first turn


ON_TWO = ["local", "average", "resumed", "resumed, average", "a hook that writes into a block"]


SUITE = "tests.strategy.scenarios.outside"
ranks = ranks_of(SUITE)


@pytest.mark.parametrize("name", ON_TWO)
def test_two_clients_with_teachers(ranks: Ranks, name: str) -> None:
    ranks.run(name)


def test_it_is_said_once_a_fit(ranks: Ranks) -> None:
    for before in ranks.run("local"):
        pattern = r"the frozen parameter teacher\.0\.weight and \d more is changed .*: each client keeps its own"
        assert len(re.findall(pattern, before)) == 1
        assert "checkpoints have the first client's" in before
