"""What the Trainer offers, option by option: the scenarios of scenarios/trainer.py, one launch for all of them."""

from __future__ import annotations

import inspect
import re

import pytest
from lightning.pytorch import Trainer

from tests.support.launch import ROOT
from tests.support.ranks import Ranks, ranks_of

SAME_BITS = [
    "no validation",
    "limit_val_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "reload_dataloaders_every_n_epochs",
    "precision 32",
    "deterministic",
    "benchmark",
    "plugins",
    "enable_autolog_hparams",
    "detect_anomaly",
    "inference_mode",
    "barebones",
    "profiler simple",
    "profiler advanced",
    "profiler pytorch",
    "CSVLogger",
    "TensorBoardLogger",
    "ModelCheckpoint",
    "ModelCheckpoint every_n_train_steps",
    "ModelCheckpoint save_top_k",
    "ModelCheckpoint save_last",
    "ModelCheckpoint train_time_interval",
    "ModelCheckpoint save_on_exception",
    "OnExceptionCheckpoint",
    "EarlyStopping",
    "Timer",
    "LearningRateMonitor",
    "DeviceStatsMonitor",
    "RichProgressBar",
    "TQDMProgressBar",
    "LambdaCallback",
    "everything together",
    "ModelSummary",
    "all_gather, print, torchmetrics",
    "torch.compile of the inner model",
    "activation checkpointing",
]
AS_THE_ORACLE = [
    "gradient_clip_val by norm",
    "gradient_clip_val by value",
    "scheduler by step",
    "scheduler by epoch",
    "GradientAccumulationScheduler",
    "parameter groups",
    "mixed precision",
    "lengths",
    "max_time",
    "EarlyStopping stops all",
]
OTHER = ["what was written", "ReduceLROnPlateau", "validate, test, predict"]
DIFFERS = r"differs between clients: client 0 .* has .*; client 1 .* has .*; make it the same everywhere"
REFUSED = {
    "16-true": r"'model\.0\.weight' is torch\.float16; trainable parameters must be float32",
    "64-true": r"'model\.0\.weight' is torch\.float64; trainable parameters must be float32",
    "StochasticWeightAveraging": r"the callback StochasticWeightAveraging averages this client's own weights",
    "EMAWeightAveraging": r"the callback EMAWeightAveraging averages this client's own weights",
    "ModelPruning": r"the callback ModelPruning changes weights behind the strategy's back",
    "LearningRateFinder": r"the callback LearningRateFinder trains and then takes the model back",
    "BatchSizeFinder": r"the callback BatchSizeFinder trains and then takes the model back",
    "Tuner.lr_find": r"the callback LearningRateFinder trains and then takes the model back",
    "Tuner.scale_batch_size": r"batch size is currently not supported with distributed strategies",
    "sync_batchnorm": r"Trainer\(sync_batchnorm=True\) averages statistics .* set buffers='average'",
    "LayerSync": r"Trainer\(sync_batchnorm=True\) averages statistics .* set buffers='average'",
    "val_check_interval by time": r"Trainer\(val_check_interval=\.\.\.\) with a time goes by each client's own clock",
    "another val_check_interval": rf"Trainer\(val_check_interval\) {DIFFERS}",
    "another limit_train_batches": rf"Trainer\(limit_train_batches\) {DIFFERS}",
    "a callback on one client": rf"the list of callbacks {DIFFERS}",
    "validation on one client": rf"Trainer\(limit_val_batches\) {DIFFERS}",
    "another max_time": rf"the list of callbacks {DIFFERS}",
    "torch.compile of the LightningModule": r"compiled model is incompatible with .* `ParaBlockStrategy`",
}


SUITE = "tests.strategy.scenarios.trainer"
ranks = ranks_of(SUITE)


@pytest.mark.parametrize("name", SAME_BITS)
def test_it_changes_no_bit_of_the_weights(ranks: Ranks, name: str) -> None:
    ranks.run(name)


@pytest.mark.parametrize("name", AS_THE_ORACLE)
def test_it_changes_the_training_as_it_changes_the_oracle(ranks: Ranks, name: str) -> None:
    ranks.run(name)


@pytest.mark.parametrize("name", OTHER)
def test_it_holds_on_every_rank(ranks: Ranks, name: str) -> None:
    ranks.run(name)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_on_every_rank_before_training(ranks: Ranks, name: str) -> None:
    for output in ranks.run(name):
        said = [line for line in output.splitlines() if line.startswith("REFUSED ")][-1]
        assert re.search(REFUSED[name], said), said


def test_the_page_lists_every_argument_of_the_trainer() -> None:
    """An argument that a new version of Lightning brings must be tried, and then listed."""
    page = (ROOT / "docs" / "trainer.md").read_text()
    arguments = inspect.signature(Trainer.__init__).parameters.keys() - {"self"}
    assert sorted(name for name in arguments if not re.search(rf"`{name}\b", page)) == []


def test_print_of_a_module_is_rank_0s(ranks: Ranks) -> None:
    outputs = ranks.run("all_gather, print, torchmetrics")
    assert ["printed once" in output for output in outputs] == [True, False]
