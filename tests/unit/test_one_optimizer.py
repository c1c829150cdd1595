"""What configure_optimizers may return: one optimizer, in every form that Lightning takes."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.optim.lr_scheduler import ConstantLR

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.strategy.refusals import refusing_several_optimizers


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def schedulers(optimizer: torch.optim.Optimizer) -> list[ConstantLR]:
    return [ConstantLR(optimizer), ConstantLR(optimizer)]


class Module(LightningModule):
    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made = made

    def configure_optimizers(self) -> Any:
        return self.made


ONE: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "alone": sgd,
    "in a list": lambda: [sgd()],
    "in a dictionary": lambda: {"optimizer": sgd()},
    "in a list of dictionaries": lambda: [{"optimizer": sgd()}],
    "beside two schedulers": lambda: ([(one := sgd())], schedulers(one)),
    "beside a scheduler, which Lightning refuses": lambda: ((one := sgd()), ConstantLR(one)),
}
SEVERAL: dict[str, Callable[[], Any]] = {
    "in a list": lambda: [sgd(), sgd()],
    "in a tuple": lambda: (sgd(), sgd()),
    "in dictionaries": lambda: [{"optimizer": sgd()}, {"optimizer": sgd()}],
    "beside schedulers": lambda: ([sgd(), sgd()], []),
}


@pytest.mark.parametrize("form", ONE)
def test_one_passes(form: str) -> None:
    module = Module(ONE[form]())
    with refusing_several_optimizers(module):
        assert module.configure_optimizers() is module.made


@pytest.mark.parametrize("form", SEVERAL)
def test_several_are_refused(form: str) -> None:
    module = Module(SEVERAL[form]())
    with (
        pytest.raises(ConfigurationError, match="must return one optimizer, it returned several"),
        refusing_several_optimizers(module),
    ):
        module.configure_optimizers()
    assert "configure_optimizers" not in vars(module)


def test_what_was_set_on_the_module_itself_is_there_again() -> None:
    """As LightningCLI sets it."""
    module, made = Module(None), sgd()
    own = MethodType(lambda _: made, module)
    module.configure_optimizers = own
    with refusing_several_optimizers(module):
        assert module.configure_optimizers() is made
    assert vars(module)["configure_optimizers"] is own
