"""A user's script that does not know of lightning_parablock: a LightningCLI, and then a Trainer of its own.

Prints the weights' hash after the first fit and "step N" during the second, which goes on until somebody stops it.
"""

import hashlib
import time

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader


class Net(LightningModule):
    """Linear layers that learn to answer 1.

    Args:
        layers: Number of layers.
        go_on: Fit again after the first fit, without an end.
    """

    def __init__(self, layers: int = 4, go_on: bool = False) -> None:
        super().__init__()
        self.go_on = go_on
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(layers)))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.layers(batch) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Data(LightningDataModule):
    """The same random vectors for everybody."""

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), batch_size=2)  # type: ignore[arg-type]


class Tell(Callback):
    """Says where the second fit stands, slowly."""

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        time.sleep(0.05)
        print(f"step {trainer.global_step}", flush=True)


if __name__ == "__main__":
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    cli = LightningCLI(Net, Data, seed_everything_default=0, save_config_callback=None, trainer_defaults=quiet)
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in cli.model.parameters())
    settings = cli.trainer.strategy.settings
    print(
        "settings", settings.delay_steps, settings.local_steps, "hash", hashlib.sha256(weights).hexdigest(), flush=True
    )
    if cli.model.go_on:
        quiet |= {"default_root_dir": cli.trainer.default_root_dir}
        again = {"strategy": "parablock", "accelerator": "cpu", "devices": 2, "max_epochs": -1, **quiet}
        Trainer(callbacks=[Tell()], **again).fit(cli.model, cli.datamodule)
