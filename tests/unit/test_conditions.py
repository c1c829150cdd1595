"""A resumed run of secure sums sees whatever else would change the bits of its site's training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_parablock.errors import CheckpointError
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.settings import Settings
from lightning_parablock.strategy import conditions
from lightning_parablock.strategy.conditions import conditions_here, repeats_bits
from lightning_parablock.strategy.secure import _OwnSide  # pyright: ignore[reportPrivateUsage]
from tests.site_kit.sites import identities
from tests.support.lightning_run import trainer_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _flags() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)


def here(own_local_steps: int | None = None, **trainer: Any) -> dict[str, str]:
    return conditions_here(trainer_for("auto", **trainer), CPU, Settings(own_local_steps=own_local_steps))


def changed(found: dict[str, str]) -> list[str]:
    usual = here()
    assert found.keys() == usual.keys()
    return sorted(name for name in found if found[name] != usual[name])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"precision": "bf16-mixed"}, "precision"),
        ({"gradient_clip_val": 0.5}, "gradient_clip_val"),
        ({"gradient_clip_algorithm": "value"}, "gradient_clip_algorithm"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches"),
        ({"callbacks": [GradientAccumulationScheduler({0: 1, 4: 2})]}, "accumulate_grad_batches"),
        ({"limit_train_batches": 3}, "limit_train_batches"),
        ({"own_local_steps": 2}, "own_local_steps"),
    ],
)
def test_options_that_change_a_step(options: dict[str, Any], name: str) -> None:
    assert changed(here(**options)) == [name]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "threads"),
        (lambda: torch.use_deterministic_algorithms(True), "deterministic algorithms"),
        (lambda: torch.set_float32_matmul_precision("medium"), "float32_matmul_precision"),
    ],
)
def test_settings_of_torch(change: Callable[[], None], name: str) -> None:
    before = here()
    change()
    assert [one for one, value in here().items() if value != before[one]] == [name]


def test_another_processor_and_other_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {"numpy", "tokenizers", "torch", "Python", "device"} <= here().keys()
    facts = tmp_path / "cpuinfo"
    facts.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n")
    before = here()
    monkeypatch.setattr(conditions, "_CPU_FACTS", facts)
    found = here()
    assert found["processor"].startswith("Some CPU @ 3 GHz with ")
    assert [name for name in found if found[name] != before[name]] == ["processor"]
    monkeypatch.setattr(conditions, "_CPU_FACTS", tmp_path / "none")
    assert not here()["processor"].startswith(" ")


def test_a_gpu_repeats_its_bits_with_deterministic_algorithms_alone() -> None:
    assert repeats_bits(CPU) and not repeats_bits(CUDA)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert not repeats_bits(CUDA)
    torch.use_deterministic_algorithms(True)
    assert repeats_bits(CUDA)


def own_side(folder: Path, resumed: Any, now: dict[str, str], *, repeats: bool = True) -> object:
    site = identities(folder, "a")["a"]
    Submissions.create(site.folder)
    member: Any = SimpleNamespace(identity=site)
    return _OwnSide.of(member, resumed, json.dumps(now, sort_keys=True), repeats=repeats)


def saved(before: dict[str, str]) -> Any:
    state = {"nonce": "00" * 16, "salt": "", "data": "[]", "here": json.dumps(before, sort_keys=True)}
    return SimpleNamespace(own={"secure": state})


def test_what_has_changed_is_named_and_nothing_else(tmp_path: Path) -> None:
    before, now = {"threads": "1", "GPU": "H200", "numpy": "2.1"}, {"threads": "2", "numpy": "2.1", "precision": "16"}
    with pytest.raises(CheckpointError) as caught:
        own_side(tmp_path, saved(before), now)
    assert str(caught.value).startswith(
        "the checkpoint was saved with GPU H200, precision not noted, threads 1 at this site, which now has GPU not "
        "noted, precision 16, threads 2: repeated rounds would have other bits"
    )
    own_side(tmp_path / "same", saved(now), now)


def test_a_device_with_other_bits_each_time_repeats_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CheckpointError, match=r"Trainer\(deterministic=True\) alone, from the first round on; start a"):
        own_side(tmp_path, saved({}), {}, repeats=False)
    with caplog.at_level(logging.WARNING):
        own_side(tmp_path / "new", None, {}, repeats=False)
    assert "this fit cannot be resumed from its checkpoints" in caplog.text
