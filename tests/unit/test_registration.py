"""The names that users give to ``Trainer(strategy=...)``."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import StrategyRegistry

import lightning_parablock
from lightning_parablock import ParaBlockStrategy, ServerNesterov
from lightning_parablock.strategy.presets import PRESETS, register

PRESET_SETTINGS: dict[str, dict[str, Any]] = {
    "parablock": {"local_steps": 16, "delay_steps": 16, "blocks": "layers", "block_order": "shuffle"},
    "fedbcd": {"local_steps": 16, "delay_steps": 0, "blocks": "layers", "block_order": "shuffle"},
    "fedavg": {"local_steps": 16, "delay_steps": 0, "blocks": 1, "block_order": "shuffle"},
    "fedcybgd": {
        "local_steps": 16,
        "delay_steps": 0,
        "blocks": "layers",
        "cohort": 1,
        "cohort_sampling": "rotation",
        "block_order": "sequential",
    },
    "diloco": {
        "local_steps": 500,
        "delay_steps": 0,
        "blocks": 1,
        "server_optimizer": ServerNesterov(lr=0.7, momentum=0.9),
        "block_optimizer_state": "keep",
    },
}


def test_every_preset_is_tested_here() -> None:
    assert set(PRESET_SETTINGS) == set(PRESETS)


@pytest.mark.parametrize("name", PRESET_SETTINGS)
def test_importing_the_package_registers_the_name_once(name: str) -> None:
    assert StrategyRegistry.available_strategies().count(name) == 1
    assert StrategyRegistry[name]["strategy"] is ParaBlockStrategy
    assert StrategyRegistry[name]["description"]


def test_registering_again_changes_nothing() -> None:
    before = {name: StrategyRegistry[name] for name in PRESETS}
    register()
    assert {name: StrategyRegistry[name] for name in PRESETS} == before


@pytest.mark.parametrize("name", PRESET_SETTINGS)
def test_the_trainer_builds_the_preset_by_its_name(name: str) -> None:
    for spelling in (name, name.upper()):
        trainer = Trainer(strategy=spelling, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        assert isinstance(trainer.strategy, ParaBlockStrategy)
        settings = trainer.strategy.settings
        assert {key: getattr(settings, key) for key in PRESET_SETTINGS[name]} == PRESET_SETTINGS[name]


def test_the_public_names() -> None:
    assert set(lightning_parablock.__all__) >= {
        "BF16",
        "Block",
        "Int4",
        "Int8",
        "NoCompression",
        "ParaBlockStrategy",
        "RoundRecord",
        "ServerAdam",
        "ServerNesterov",
        "ServerSGD",
        "ServerYogi",
        "TopK",
    }
    assert all(hasattr(lightning_parablock, name) for name in lightning_parablock.__all__)
