"""One rank of the resumed fits that test_resume.py starts: stopped at a save, resumed by a new trainer, same bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lightning_parablock import LowRank, ParaBlockStrategy, ServerNesterov
from tests.support.here import N_RANKS, RANK, SCRATCH
from tests.tasks import Layer, assert_same_bits

K, BATCHES, EPOCHS = 4, 11, 3


class Noisy(Dataset[Tensor]):
    """Samples with noise of every generator, drawn anew at each visit."""

    def __init__(self) -> None:
        self.samples = torch.randn(2 * BATCHES, 8, 16, generator=torch.Generator().manual_seed(RANK))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        return self.samples[index] + 0.1 * noise


class Net(LightningModule):
    """Layers with dropout, a scheduler, a running buffer, and a stateful optimizer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.ModuleList([Layer(), Layer(), Layer()])
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.2)
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.dropout(layer(x))
        return self.norm(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, dict):  # of two loaders
            batch = batch["x"] + batch["y"].mean()
        loss = (self(batch) - batch.flip(1)).square().mean()
        self.losses.append(loss.item())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", (self(batch) - batch).square().mean() + 0 * torch.rand(()), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.7), "interval": "step"}]


class SaveAt(Callback):
    """Saves at one optimizer step, in one of the hooks where callbacks save."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.step, self.path, self.saved = step, path, 0
        setattr(self, hook, self._save)

    def _save(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            self.saved += 1


class Endless(IterableDataset[Tensor]):
    """The same samples as a stream that does not know its length."""

    def __iter__(self) -> Iterator[Tensor]:
        data = Noisy()
        order = torch.randperm(len(data)).tolist()
        return (data[index] for index in order)


class Stateful:
    """A loader that knows where it stands, as those of torchdata do."""

    def __init__(self) -> None:
        self.samples, self.next, self.first = Noisy().samples, 0, 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Tensor]:
        self.next, self.first = self.first, 0
        while self.next < BATCHES:
            self.next += 1
            yield self.samples[2 * self.next - 2 : 2 * self.next]

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next, "client": RANK}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["client"] == RANK
        self.first = state["next"] % BATCHES


def shuffled(workers: int = 0) -> DataLoader[Tensor]:
    return DataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=workers)


TRAIN: dict[str, Callable[[], Any]] = {
    "shuffled": shuffled,
    "worker processes": lambda: shuffled(workers=1),
    "own generator": lambda: DataLoader(
        Noisy(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(RANK)
    ),
    "iterable": lambda: DataLoader(Endless(), batch_size=2),
    "two loaders": lambda: {"x": shuffled(), "y": DataLoader(Noisy(), batch_size=7, shuffle=True)},
    "stateful": Stateful,
    "uneven": lambda: DataLoader(Subset(Noisy(), range(2 * BATCHES - 10 * RANK)), batch_size=2, shuffle=True),
}


def loaders(kind: str) -> dict[str, Any]:
    return {"train_dataloaders": TRAIN[kind](), "val_dataloaders": DataLoader(Noisy(), batch_size=4)}


def trainer_for(strategy: dict[str, Any], callbacks: list[Callback], **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "local_steps": K,
        "server_optimizer": ServerNesterov(),
        "block_order": "random",
        "seed": 3,
        "exchange_timeout_s": 60,
    }
    trainer_options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": N_RANKS,
        "max_epochs": EPOCHS,
        "val_check_interval": 5,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": str(SCRATCH),
        "callbacks": callbacks,
        **options,
    }
    return Trainer(strategy=ParaBlockStrategy(**{**defaults, **strategy}), **trainer_options)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def whole(strategy: dict[str, Any], data: str = "shuffled", **options: Any) -> Net:
    module = Net()
    trainer_for(strategy, [], **options).fit(module, **loaders(data))
    return module


def stopped_and_resumed(
    name: str, hook: str, step: int, *, data: str = "shuffled", strategy: dict[str, Any] | None = None, **options: Any
) -> Callable[[], None]:
    """A scenario: the run that saved, and the run that went on from it, end with the bits of the run never stopped."""

    def scenario() -> None:
        settings = strategy or {}
        expected = whole(settings, data, **options)
        path = SCRATCH / f"{name}.ckpt"
        saver = SaveAt(hook, step, path)
        saving = Net()
        trainer_for(settings, [saver], **options).fit(saving, **loaders(data))
        assert saver.saved == 1, saver.saved
        assert_same_bits(weights(saving), weights(expected))
        seed_something_else()
        resumed = Net()
        trainer_for(settings, [], **options).fit(resumed, **loaders(data), ckpt_path=path)
        assert 0 < len(resumed.losses) < len(expected.losses)
        assert resumed.losses == expected.losses[-len(resumed.losses) :]
        assert_same_bits(weights(resumed), weights(expected))

    return scenario


def resumed_at_the_end(**limit: Any) -> Callable[[], None]:
    """A scenario: nothing is left to train, and what was in flight when it was saved is merged all the same."""

    def scenario() -> None:
        strategy = {"delay_steps": 2 * K, "max_rounds": limit.get("max_rounds")}
        options = {"max_epochs": EPOCHS} | {k: v for k, v in limit.items() if k != "max_rounds"}
        path = SCRATCH / f"end-{'-'.join(limit)}.ckpt"
        last = 4 * K if "max_rounds" in limit else limit.get("max_steps", EPOCHS * BATCHES)
        saver = SaveAt("on_train_epoch_end" if not limit else "on_train_batch_end", last, path)
        saving = Net()
        trainer_for(strategy, [saver], **options).fit(saving, **loaders("shuffled"))
        assert saver.saved == 1, saver.saved
        resumed = Net()
        trainer_for(strategy, [], **options).fit(resumed, **loaders("shuffled"), ckpt_path=path)
        assert resumed.losses == []
        assert_same_bits(weights(resumed), weights(saving))
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert any(not torch.equal(saved[name], value) for name, value in weights(saving).items()), "nothing was left"

    return scenario


def seed_something_else() -> None:
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)


SCENARIOS: dict[str, Callable[[], None]] = {
    "mid-round": stopped_and_resumed("mid-round", "on_train_batch_end", 14),
    "round's end": stopped_and_resumed("rounds-end", "on_train_batch_end", 12),
    "first step": stopped_and_resumed("first", "on_train_batch_end", 1),
    "epoch's last batch": stopped_and_resumed("last-batch", "on_train_batch_end", BATCHES),
    "validation": stopped_and_resumed("validation", "on_validation_end", 16),
    "epoch's end": stopped_and_resumed("epochs-end", "on_train_epoch_end", 2 * BATCHES),
    "delay 0": stopped_and_resumed("delay0", "on_train_batch_end", 14, strategy={"delay_steps": 0}),
    "delay 2K, star": stopped_and_resumed(
        "delay2k", "on_train_batch_end", 18, strategy={"delay_steps": 2 * K, "topology": "star"}
    ),
    "delay K+2, anchor": stopped_and_resumed(
        "anchor", "on_train_batch_end", 19, strategy={"delay_steps": K + 2, "in_flight_value": "anchor"}
    ),
    **{
        f"saved at step {step}, 2 rounds without delay": stopped_and_resumed(
            f"warm-up-{step}",
            "on_train_batch_end",
            step,
            strategy={"delay_steps": K + 2, "delay_warmup_rounds": 2, "compression": "int8"},
            max_epochs=2,
        )
        for step in (K, K + 2, 2 * K, 2 * K + 2, 3 * K + 1)
    },
    "bf16-true": stopped_and_resumed(
        "bf16", "on_train_batch_end", 14, strategy={"delay_steps": K + 2}, precision="bf16-true", max_epochs=2
    ),
    "low rank, two in flight": stopped_and_resumed(
        "low-rank", "on_train_batch_end", 17, strategy={"compression": LowRank(2), "delay_steps": K + 2}
    ),
    "bf16-true, low rank": stopped_and_resumed(
        "bf16low-rank",
        "on_train_batch_end",
        14,
        strategy={"compression": LowRank(2)},
        precision="bf16-true",
        max_epochs=2,
    ),
    "int4": stopped_and_resumed("int4", "on_train_batch_end", 14, strategy={"compression": "int4"}),
    "bf16-true, int8": stopped_and_resumed(
        "bf16int8", "on_train_batch_end", 14, strategy={"compression": "int8"}, precision="bf16-true", max_epochs=2
    ),
    "offloaded state": stopped_and_resumed(
        "offload",
        "on_train_batch_end",
        14,
        strategy={"block_optimizer_state": "offload", "server_optimizer": "yogi", "weighting": "samples"},
    ),
    "bf16-true, kept state": stopped_and_resumed(
        "kept",
        "on_train_batch_end",
        14,
        strategy={"block_optimizer_state": "keep", "local_warmup_steps": 3, "proximal_mu": 0.1},
        precision="bf16-true",
    ),
    "uneven": stopped_and_resumed("uneven", "on_train_batch_end", 9, data="uneven", max_epochs=2),  # client 1 idles
    "accumulation": stopped_and_resumed("accumulate", "on_validation_end", 8, accumulate_grad_batches=2),
    "at max_steps": resumed_at_the_end(max_steps=13),  # in the middle of a round
    "at max_epochs": resumed_at_the_end(),
    "at max_rounds": resumed_at_the_end(max_rounds=4),
    **{
        data: stopped_and_resumed(data, "on_train_batch_end", 14, data=data, max_epochs=2)
        for data in TRAIN
        if data not in ("shuffled", "uneven")
    },
}
