"""One rank of the fits that test_demos.py starts: Lightning's demo modules, unedited, in a real Trainer."""

from __future__ import annotations

import copy
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import (
    BoringDataModule,
    BoringDataModuleNoLen,
    BoringModel,
    DemoModel,
    ManualOptimBoringModel,
    RandomDataset,
)
from lightning.pytorch.demos.lstm import LightningLSTM
from lightning.pytorch.demos.transformer import LightningTransformer, WikiText2
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.schedule import block_of_round
from tests.oracle import OracleConfig, run_oracle
from tests.support.here import N_RANKS, RANK, SCRATCH
from tests.support.lightning_run import trainer_for
from tests.tasks import assert_same_bits

K, SEED, WORDS = 4, 3, 30

Seen = list[tuple[Any, Tensor]]  # a batch, and the random state in which the step began


class Recorder(Callback):
    """What the oracle needs to know of a fit whose module and data are nobody's but their author's."""

    def __init__(self) -> None:
        self.seen: Seen = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append((copy.deepcopy(batch), torch.get_rng_state()))


def demo(
    make_module: Callable[[], LightningModule],
    data: Callable[[], DataLoader[Any] | LightningDataModule | None] = lambda: None,
    steps: int = 30,
    falls: bool = True,
    clip: float | None = None,
    **options: Any,
) -> Callable[[], None]:
    """A scenario: the module trains unedited, its loss falls, and the weights are the oracle's.

    With ``falls=False`` nothing is asked of the loss: on single samples BoringModel's rate of 0.1 is too high, under
    any strategy.
    """

    def scenario() -> None:
        torch.manual_seed(SEED)
        module, recorder = make_module(), Recorder()
        untrained = copy.deepcopy(module)
        used = ParaBlockStrategy(local_steps=K, seed=SEED, exchange_timeout_s=60, **options)
        choices = {"max_steps": steps, "gradient_clip_val": clip, "use_distributed_sampler": True}
        trainer = trainer_for(used, devices=N_RANKS, callbacks=[recorder], **choices)
        torch.manual_seed(RANK)  # modules that draw their data draw different ones
        trainer.fit(module, data())
        clients = seen_by_all(recorder.seen)
        assert [len(seen) for seen in clients] == [steps] * N_RANKS
        before, after = mean_loss(untrained, clients), mean_loss(module, clients)
        assert after < 0.98 * before or not falls, (before, after)
        assert_same_bits(dict(module.named_parameters()), oracle(untrained, used, clients, clip))

    return scenario


def seen_by_all(seen: Seen) -> list[Seen]:
    """Every client's record; no two clients saw the same first batch."""
    everyone: list[Any] = [None] * N_RANKS
    dist.all_gather_object(everyone, seen)
    assert str(everyone[0][0][0]) != str(everyone[1][0][0])
    return everyone


def loss_of(module: LightningModule, batch: Any, index: int) -> Tensor:
    """The loss as Lightning takes it from a training step."""
    output: Any = module.training_step(batch, index)
    return output["loss"] if isinstance(output, dict) else output


@torch.no_grad()
def mean_loss(module: LightningModule, clients: list[Seen]) -> float:
    """Over all that the clients trained on, without dropout."""
    module = copy.deepcopy(module).eval()
    losses = [loss_of(module, batch, i) for seen in clients for i, (batch, _) in enumerate(seen)]
    return float(torch.stack(losses).mean())


def oracle(
    untrained: LightningModule, used: ParaBlockStrategy, clients: list[Seen], clip: float | None
) -> dict[str, Tensor]:
    """The plain loop over the same module, its own optimizer, and the batches and random states that clients had."""
    settings, steps = used.settings, len(clients[0])
    schedule = [block_of_round(settings.block_order, len(used.blocks), t, settings.seed) for t in range(steps)]
    config = OracleConfig(
        block_names=tuple(block.parameter_names for block in used.blocks),
        schedule=tuple(schedule),
        n_clients=N_RANKS,
        total_steps=steps,
        local_steps=K,
        delay_steps=settings.delay_steps,
    )

    def loss_fn(module: nn.Module, client: int, step: int) -> Tensor:
        batch, random_state = clients[client][step]
        torch.set_rng_state(random_state)
        assert isinstance(module, LightningModule)
        return loss_of(module, batch, step)

    def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        configured: Any = untrained.configure_optimizers()
        own = configured[0][0] if isinstance(configured, tuple) else configured
        optimizer = type(own)(parameters, **own.defaults)
        optimizer.register_step_pre_hook(lambda *_: clip_gradients(parameters, clip))
        return optimizer

    return run_oracle(config, lambda: copy.deepcopy(untrained).train(), loss_fn, make_optimizer).weights


def clip_gradients(parameters: list[nn.Parameter], norm: float | None) -> None:
    """What Trainer(gradient_clip_val=norm) does."""
    if norm is not None:
        clip_grad_norm_(parameters, norm)


def text_of_this_client(*_: object) -> None:
    """In place of the download: random words, the client's own, where the demo looks for its file."""
    draw = random.Random(RANK)
    words = [str(draw.randrange(WORDS)) for _ in range(2400)] + [str(word) for word in range(WORDS)]
    Path("data").mkdir(exist_ok=True)
    Path("data/wikitext-2.txt").write_text(" ".join(words))


def eights() -> DataLoader[Any]:
    """Random rows, the client's own, in batches of eight."""
    return DataLoader(RandomDataset(32, 240), batch_size=8)


def short_chunks() -> DataLoader[Any]:
    """The demo's data set in shorter chunks, for the large LSTM."""
    return DataLoader(WikiText2(block_size=4, download=True), batch_size=4)


def manual_optimization_is_refused() -> None:
    """By name, before anything is trained."""
    module = ManualOptimBoringModel()
    trainer = trainer_for(ParaBlockStrategy(blocks=2), devices=N_RANKS, max_steps=3)
    try:
        trainer.fit(module)
    except ConfigurationError as error:
        assert "ManualOptimBoringModel uses manual optimization" in str(error), error
        assert trainer.global_step == 0
    else:
        raise AssertionError("it was not refused")


SCENARIOS: dict[str, Callable[[], None]] = {
    "BoringModel": demo(BoringModel, eights, blocks=2),
    "BoringModel, no delay": demo(BoringModel, eights, blocks=2, delay_steps=0),
    "BoringModel and its own data": demo(BoringModel, blocks=2, falls=False),
    "BoringDataModule": demo(BoringModel, BoringDataModule, blocks=["bias", "weight"], falls=False),
    "BoringDataModuleNoLen": demo(BoringModel, BoringDataModuleNoLen, blocks=2, falls=False),
    "DemoModel": demo(DemoModel, eights, blocks=2),
    "LightningTransformer": demo(lambda: LightningTransformer(vocab_size=64), steps=18),
    "LightningLSTM": demo(lambda: LightningLSTM(vocab_size=64), short_chunks, steps=9, clip=0.25),
    "ManualOptimBoringModel": manual_optimization_is_refused,
}


def prepare() -> None:
    """In a folder of this client, where the demo finds its data."""
    warnings.simplefilter("ignore")
    folder = SCRATCH / f"client{RANK}"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    mock.patch.object(WikiText2, "download", text_of_this_client).start()
