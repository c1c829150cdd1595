"""One rank of the fits that test_trainer.py starts: what the Trainer offers, option by option."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torchmetrics
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch import callbacks as cb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.checkpoint import checkpoint

from lightning_parablock.blocks.partition import partition
from tests.strategy.scenarios.toys import (
    BATCHES,
    EPOCHS,
    N_RANKS,
    RANK,
    STEPS,
    TASK,
    Do,
    Watching,
    batches,
    epoch_loss,
    on_all,
    oracle,
    run,
    steps_made,
    strategy,
)
from tests.support.here import SCRATCH
from tests.support.lightning_run import TaskModule, trainer_for
from tests.support.scenarios import after
from tests.tasks import Layer, TinyTransformer, adamw_default, assert_same_bits, transformer_task

Options = dict[str, Any]


# What must not change one bit of the weights.


def csv(name: str) -> Options:
    return {"logger": CSVLogger(SCRATCH, name=name, version=0), "log_every_n_steps": 1}


def saving(name: str, **options: Any) -> Options:
    return {"enable_checkpointing": True, "callbacks": [cb.ModelCheckpoint(SCRATCH / name, **options)]}


def with_callback(callback: cb.Callback, **options: Any) -> Options:
    return {"callbacks": [callback], **options}


def profiled(name: str) -> Options:
    if name == "pytorch":
        return {"profiler": PyTorchProfiler(dirpath=SCRATCH, filename=f"pytorch{RANK}")}
    return {"profiler": name}


NEUTRAL: dict[str, Callable[[], Options]] = {
    "no validation": lambda: {"limit_val_batches": 0},
    "limit_val_batches": lambda: {"limit_val_batches": 0.5},
    "val_check_interval": lambda: {"val_check_interval": 3},
    "check_val_every_n_epoch": lambda: {"check_val_every_n_epoch": 2},
    "num_sanity_val_steps": lambda: {"num_sanity_val_steps": -1},
    "reload_dataloaders_every_n_epochs": lambda: {"reload_dataloaders_every_n_epochs": 1},
    "precision 32": lambda: {"precision": "32-true"},
    "deterministic": lambda: {"deterministic": "warn"},
    "benchmark": lambda: {"benchmark": True},
    "plugins": lambda: {"plugins": [TorchCheckpointIO()]},
    "enable_autolog_hparams": lambda: {"enable_autolog_hparams": False},
    "detect_anomaly": lambda: {"detect_anomaly": True},
    "inference_mode": lambda: {"inference_mode": False},
    "barebones": lambda: {
        "barebones": True,
        "logger": None,
        "enable_checkpointing": None,
        "enable_progress_bar": None,
        "enable_model_summary": None,
    },
    "profiler simple": lambda: profiled("simple"),
    "profiler advanced": lambda: profiled("advanced"),
    "profiler pytorch": lambda: profiled("pytorch"),
    "CSVLogger": lambda: csv("csv"),
    "TensorBoardLogger": lambda: {"logger": TensorBoardLogger(SCRATCH, name="board", version=0)},
    "ModelCheckpoint": lambda: saving("epochs", every_n_epochs=1, save_top_k=-1),
    "ModelCheckpoint every_n_train_steps": lambda: saving("steps", every_n_train_steps=3, save_top_k=-1),
    "ModelCheckpoint save_top_k": lambda: saving("top", monitor="val_loss", save_top_k=1, save_last="link"),
    "ModelCheckpoint save_last": lambda: saving("last", save_last=True),
    "ModelCheckpoint train_time_interval": lambda: saving("time", train_time_interval=timedelta(0), save_top_k=-1),
    "ModelCheckpoint save_on_exception": lambda: saving("exception", save_on_exception=True, save_top_k=0),
    "OnExceptionCheckpoint": lambda: with_callback(
        cb.OnExceptionCheckpoint(SCRATCH / "on_exception"), enable_checkpointing=True
    ),
    "EarlyStopping": lambda: with_callback(cb.EarlyStopping("val_loss", patience=100)),
    "Timer": lambda: with_callback(cb.Timer(timedelta(days=1))),
    "LearningRateMonitor": lambda: with_callback(cb.LearningRateMonitor(), **csv("rates")),
    "DeviceStatsMonitor": lambda: with_callback(cb.DeviceStatsMonitor(cpu_stats=True), **csv("stats")),
    "RichProgressBar": lambda: with_callback(cb.RichProgressBar(), enable_progress_bar=True),
    "TQDMProgressBar": lambda: with_callback(cb.TQDMProgressBar(), enable_progress_bar=True),
    "LambdaCallback": lambda: with_callback(cb.LambdaCallback(on_train_batch_end=lambda *_: torch.rand(0))),
}


def neutral(name: str) -> Callable[[], None]:
    def scenario() -> None:
        module = run(**NEUTRAL[name]())
        assert steps_made(module) == STEPS
        assert_same_bits(module.weights(), oracle())

    return scenario


def what_was_written() -> None:
    """The scenarios before have left their files, rank 0's, and a checkpoint loads."""
    rows = (SCRATCH / "csv/version_0/metrics.csv").read_text().splitlines()
    assert {"train_loss", "val_loss", "parablock/round"} <= set(rows[0].split(","))
    assert len(rows) > STEPS
    assert "lr-AdamW" in (SCRATCH / "rates/version_0/metrics.csv").read_text().splitlines()[0]
    assert list((SCRATCH / "board/version_0").glob("events.*"))
    assert {path.name for path in (SCRATCH / "steps").glob("*.ckpt")} == {"final.ckpt"} | {
        f"epoch={(step - 1) // BATCHES}-step={step}.ckpt" for step in range(3, STEPS + 1, 3)
    }
    assert (SCRATCH / "top/last.ckpt").is_symlink() and not (SCRATCH / "last/last.ckpt").is_symlink()
    assert len(list((SCRATCH / "top").glob("epoch*.ckpt"))) == 1
    assert len(list((SCRATCH / "time").glob("epoch*.ckpt"))) == 3  # rounds of four steps, fourteen steps
    loaded = TaskModule(TASK, adamw_default)
    loaded.load_state_dict(torch.load(SCRATCH / "last/last.ckpt", weights_only=True)["state_dict"])


def everything_together() -> None:
    """With validation, checkpoints and loggers, and without any of them: the same bits."""
    with_all = run(
        val_check_interval=2,
        enable_checkpointing=True,
        callbacks=[cb.ModelCheckpoint(SCRATCH / "all", every_n_train_steps=1, save_top_k=-1, save_last=True)],
        logger=[CSVLogger(SCRATCH, name="all_csv"), TensorBoardLogger(SCRATCH, name="all_board")],
        log_every_n_steps=1,
    )
    without = run(limit_val_batches=0)
    assert_same_bits(with_all.weights(), without.weights())


def summaries_count_the_whole_model() -> None:
    total = sum(parameter.numel() for parameter in TASK.make_model().parameters())
    for kind in (cb.ModelSummary, cb.RichModelSummary):
        seen: list[tuple[int, int]] = []

        class Counting(kind):  # type: ignore[misc, valid-type]
            def _summary(self, trainer: Any, pl_module: Any) -> Any:
                summary = super()._summary(trainer, pl_module)
                seen.append((summary.total_parameters, summary.trainable_parameters))  # noqa: B023
                return summary

        module = run(callbacks=[Counting()])
        assert seen == [(total, total)]
        assert_same_bits(module.weights(), oracle())


# What changes the trajectory, as the oracle does.


class Clipping(AdamW):
    """Clips the gradients of its parameters, then steps: of an oracle's client, the active block."""

    clip: Callable[[list[nn.Parameter]], Any]

    def step(self, closure: Any = None) -> Any:
        self.clip([parameter for group in self.param_groups for parameter in group["params"]])
        return super().step(closure)


def clipped(algorithm: str, limit: float) -> Callable[[], None]:
    def make(parameters: list[nn.Parameter]) -> Optimizer:
        optimizer = Clipping(parameters, lr=1e-2)
        by = nn.utils.clip_grad_norm_ if algorithm == "norm" else nn.utils.clip_grad_value_
        optimizer.clip = lambda parameters: by(parameters, limit)
        return optimizer

    def scenario() -> None:
        module = run(gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
        assert_same_bits(module.weights(), oracle(make_optimizer=make))
        assert any(not torch.equal(value, oracle()[name]) for name, value in module.weights().items()), "never clipped"

    return scenario


class Clock:
    """An oracle's step, noted by its loss and read by its optimizer."""

    def __init__(self, rate_of: Callable[[int], float]) -> None:
        self.step, self.rate_of = 0, rate_of

    def loss(self, model: nn.Module, client: int, step: int) -> Tensor:
        self.step = step
        return epoch_loss(model, client, step)

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        optimizer = SGD(parameters, lr=0.1)

        def set_rate(*_: Any) -> None:
            optimizer.param_groups[0]["lr"] = self.rate_of(self.step)

        optimizer.register_step_pre_hook(set_rate)
        return optimizer


def scheduled(interval: str, period: int, every: int) -> Callable[[], None]:
    def configure(module: Watching) -> Any:
        optimizer = SGD(module.parameters(), lr=0.1)
        schedule = {"scheduler": StepLR(optimizer, period, gamma=0.5), "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def scenario() -> None:
        clock = Clock(lambda step: 0.1 * 0.5 ** (step // every))
        module = run(Watching(log=lambda *_: None, optimizers=configure))
        assert_same_bits(module.weights(), oracle(loss_fn=clock.loss, make_optimizer=clock.optimizer))

    return scenario


def plateau_rates(synced: bool) -> list[list[float]]:
    """Fit with ReduceLROnPlateau on a metric that gets worse on client 1 only; each client's last rates."""

    def configure(module: Watching) -> Any:
        optimizer = SGD(module.parameters(), lr=0.1)
        schedule = {"scheduler": ReduceLROnPlateau(optimizer, patience=0, factor=0.5), "monitor": "bad"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def log(module: Watching, _: int) -> None:
        epoch = module.current_epoch
        module.log("bad", torch.tensor(2.0 + 4 * epoch if RANK == 1 else 9.0 - epoch), sync_dist=synced)

    module = run(Watching(log, configure))
    everyone = on_all({name: value.numpy().tobytes() for name, value in module.weights().items()})
    assert everyone[0] == everyone[1]
    (optimizer,) = module.trainer.optimizers
    return on_all([group["lr"] for group in optimizer.param_groups])


def plateau() -> None:
    """On a synced metric all rates fall together, on an unsynced one each client's go their own way."""
    assert plateau_rates(synced=True) == [[0.05], [0.05]]
    assert plateau_rates(synced=False) == [[0.1], [0.05]]


def accumulation_by_epoch() -> None:
    """One batch a step in the first epoch, two in the second, whose last step has one."""

    def loss(model: nn.Module, client: int, step: int) -> Tensor:
        if step < BATCHES:
            return TASK.loss_fn(model, client, step)
        first = 2 * (step - BATCHES)
        of_step = [TASK.loss_fn(model, client, b) / 2 for b in range(first, min(first + 2, BATCHES))]
        return sum(of_step[1:], of_step[0])

    module = run(callbacks=[cb.GradientAccumulationScheduler({0: 1, 1: 2})])
    assert steps_made(module) == BATCHES + 4
    assert_same_bits(module.weights(), oracle(BATCHES + 4, loss_fn=loss))


def parameter_groups() -> None:
    def make(parameters: list[nn.Parameter]) -> Optimizer:
        matrices, vectors = ([p for p in parameters if (p.dim() > 1) is wide] for wide in (True, False))
        groups = [{"params": matrices, "lr": 0.02, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
        return AdamW(groups, lr=0.01)

    module = run(TaskModule(TASK, make))
    assert_same_bits(module.weights(), oracle(make_optimizer=make))


def mixed_precision() -> None:
    """bf16-mixed is autocast around the loss; on a CPU Lightning takes it for 16-mixed, too, with a warning."""

    def loss(model: nn.Module, client: int, step: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return epoch_loss(model, client, step)

    expected = oracle(loss_fn=loss)
    for precision in ("bf16-mixed", "16-mixed"):
        module = run(precision=precision)
        assert module.trainer.precision == "bf16-mixed"
        assert_same_bits(module.weights(), expected)


# How long a run is.


def lengths() -> None:
    def loss_of(n_batches: int) -> Any:
        return lambda model, client, step: TASK.loss_fn(model, client, step % n_batches)

    for options, steps, n_batches in (
        ({"max_steps": 9, "max_epochs": -1}, 9, BATCHES),
        ({"max_steps": 3}, 3, BATCHES),
        ({"limit_train_batches": 5}, 10, 5),
        ({"limit_train_batches": 0.5}, 6, 3),
        ({"overfit_batches": 3}, 6, 3),
        ({"fast_dev_run": 2}, 2, 2),
        ({"min_steps": 12, "callbacks": [Do(on_train_start=ask_to_stop)]}, 12, BATCHES),
        ({"min_epochs": 2, "max_epochs": 5, "callbacks": [Do(on_train_start=ask_to_stop)]}, STEPS, BATCHES),
    ):
        module = run(**options)
        assert steps_made(module) == steps, options
        assert_same_bits(module.weights(), oracle(steps, loss_of(n_batches)))


def ask_to_stop(trainer: Trainer, _: Any) -> None:
    trainer.should_stop = True


class Hour(cb.Timer):
    """An hour has passed after six steps, on rank 0; the clock of rank 1 stands still."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.late = RANK == 0 and trainer.global_step >= 6
        super().on_train_batch_end(trainer, *args, **kwargs)

    def time_elapsed(self, stage: Any = None) -> float:
        return 3601.0 if getattr(self, "late", False) else 0.0


def max_time() -> None:
    """All stop at the end of the round in which rank 0's time is up; the clocks of the others do not count."""
    module = run(callbacks=[Hour(timedelta(hours=1))])
    assert steps_made(module) == 8
    assert_same_bits(module.weights(), oracle(8))
    module = run(max_time=timedelta(0))
    assert steps_made(module) == 0


def early_stopping() -> None:
    """Whoever's patience ends first ends it for all, synced or not."""
    for synced in (True, False):

        def log(module: Watching, _: int, synced: bool = synced) -> None:
            module.log("own", torch.tensor(float(module.current_epoch * RANK)), sync_dist=synced)

        stop = cb.EarlyStopping("own", patience=2)
        module = run(Watching(log), max_epochs=9, callbacks=[stop])
        # client 0's value stays the same, so its patience ends with the third epoch either way
        assert steps_made(module) == 3 * BATCHES
        assert_same_bits(module.weights(), oracle(3 * BATCHES))


# What modules do.


class Talking(TaskModule):
    """Gathers, prints, and keeps torchmetrics."""

    def __init__(self) -> None:
        super().__init__(TASK, adamw_default)
        self.mean = torchmetrics.MeanMetric()
        self.gathered: list[list[float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.gathered.append(self.all_gather(torch.tensor(float(RANK + batch_idx))).tolist())
        self.mean.update(float(RANK), weight=1 + RANK)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("step", float(RANK), on_step=True, sync_dist=True, reduce_fx="sum")
        self.print("printed once")
        return super().training_step(batch, batch_idx)


def modules_that_talk() -> None:
    module = run(Talking())
    assert module.gathered == [[b, b + 1.0] for _ in range(EPOCHS) for b in range(BATCHES)]
    assert float(module.trainer.callback_metrics["mean"]) == torch.tensor(2 / 3)
    assert float(module.trainer.callback_metrics["step"]) == 1.0
    assert_same_bits(module.weights(), oracle())


def compiled_inner_model() -> None:
    """Names gain ``_orig_mod``; the blocks and the bits stay."""
    plain, compiled = TaskModule(transformer_task(), adamw_default), TaskModule(transformer_task(), adamw_default)
    compiled.model = torch.compile(compiled.model, backend="eager")  # type: ignore[assignment]
    names = [block.name for block in partition(plain, "layers")]
    assert [block.name for block in partition(compiled, "layers")] == names and len(names) > 3
    module = TaskModule(TASK, adamw_default)
    module.model = torch.compile(module.model, backend="aot_eager")  # type: ignore[assignment]
    run(module, used=strategy(blocks=[rf"\.{index}\." for index in (0, 2, 4)]))
    weights = {name.removeprefix("_orig_mod."): value for name, value in module.weights().items()}
    assert_same_bits(weights, oracle())


class Checkpointed(nn.Module):
    """A transformer layer whose activations are recomputed."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, x, use_reentrant=False)  # type: ignore[return-value]


def activation_checkpointing() -> None:
    """The same bits, and no gradient is computed below the lowest trainable layer."""
    task = transformer_task()
    weights: list[dict[str, Tensor]] = []
    for recompute in (False, True):
        module = TaskModule(task, adamw_default)
        inner = module.model
        assert isinstance(inner, TinyTransformer)
        reached: set[int] = set()
        for index, layer in enumerate(inner.layers):
            layer.register_forward_hook(lambda _, __, out, index=index: note(out, reached, index))  # noqa: B023
            if recompute:
                inner.layers[index] = Checkpointed(layer)  # type: ignore[arg-type]

        def compare(trainer: Trainer, module: Any, reached: set[int] = reached) -> None:
            lowest = {"embed": 0, "layers.0": 0, "layers.1": 1, "layers.2": 2, "head": 3}
            (name,) = (n for n in lowest if any(n in p and q.requires_grad for p, q in module.named_parameters()))
            assert reached == set(range(lowest[name], 3)), f"{name}: gradients reached the layers {reached}"
            reached.clear()

        patterns = ["embed|position", r"layers\.0", r"layers\.1", r"layers\.2", r"^model\.(norm|head)"]
        run(module, used=strategy(blocks=patterns), callbacks=[Do(on_before_optimizer_step=compare)])
        weights.append({name.replace(".layer.", "."): value for name, value in module.weights().items()})
    assert_same_bits(weights[1], weights[0])


def note(output: Tensor, reached: set[int], index: int) -> None:
    """Note when the gradient of a layer's output is computed."""
    if output.requires_grad:
        output.register_hook(lambda _: reached.add(index))


def other_loops() -> None:
    """validate, test and predict after a fit, and their limits."""
    module = Tested(TASK, adamw_default)
    trainer = trainer_for(
        strategy(), devices=N_RANKS, limit_test_batches=2, limit_predict_batches=2, inference_mode=True
    )
    trainer.fit(module, batches(8), batches(3))
    before = module.weights()
    (validated,) = trainer.validate(module, batches(3), verbose=False)
    (tested,) = trainer.test(module, batches(3), verbose=False)
    assert set(validated) == {"val_loss"} and set(tested) == {"tested"}
    assert tested["tested"] == 0.5
    predicted = trainer.predict(module, batches(3))
    assert predicted is not None and len(predicted) == 2
    assert_same_bits(module.weights(), before)


class Tested(TaskModule):
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("tested", float(RANK), sync_dist=True)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return torch.tensor(batch_idx)


# What is refused, before training.


def refused(attempt: Callable[[], Any]) -> Callable[[], None]:
    def scenario() -> None:
        try:
            attempt()
        except (RuntimeError, ValueError) as error:
            print(f"REFUSED {type(error).__name__}: {error}", flush=True)
            return
        raise AssertionError("it was not refused")

    return scenario


class Never(TaskModule):
    """Training has not started when the error comes."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        raise AssertionError("a training step was made")


def never(**options: Any) -> Callable[[], None]:
    return refused(lambda: run(Never(TASK, adamw_default), **options))


def tuner(method: str) -> Callable[[], None]:
    def attempt() -> None:
        trainer = trainer_for(strategy(), devices=N_RANKS)
        module = Never(TASK, adamw_default)
        module.lr = module.batch_size = 1  # type: ignore[assignment]
        getattr(Tuner(trainer), method)(module, batches(3))

    return refused(attempt)


def compiled_whole() -> None:
    trainer_for(strategy(), devices=N_RANKS).fit(torch.compile(Never(TASK, adamw_default), backend="eager"))


REFUSED: dict[str, Callable[[], None]] = {
    "16-true": never(precision="16-true"),
    "64-true": never(precision="64-true"),
    "StochasticWeightAveraging": never(callbacks=[cb.StochasticWeightAveraging(0.1)]),
    "EMAWeightAveraging": never(callbacks=[cb.EMAWeightAveraging()]),
    "ModelPruning": never(callbacks=[cb.ModelPruning("l1_unstructured", amount=0.5)]),
    "LearningRateFinder": never(callbacks=[cb.LearningRateFinder()]),
    "BatchSizeFinder": never(callbacks=[cb.BatchSizeFinder()]),
    "Tuner.lr_find": tuner("lr_find"),
    "Tuner.scale_batch_size": tuner("scale_batch_size"),
    "sync_batchnorm": never(sync_batchnorm=True),
    "LayerSync": never(plugins=[TorchSyncBatchNorm()]),
    "val_check_interval by time": never(val_check_interval=timedelta(minutes=1)),
    "another val_check_interval": never(val_check_interval=2 + RANK),
    "another limit_train_batches": never(limit_train_batches=3 + RANK),
    "a callback on one client": never(callbacks=[cb.EarlyStopping("val_loss")] if RANK else []),
    "validation on one client": never(limit_val_batches=RANK),
    "another max_time": never(max_time=timedelta(hours=1 + RANK)),
    "torch.compile of the LightningModule": refused(compiled_whole),
}

SCENARIOS: dict[str, Callable[[], None]] = {
    **{name: neutral(name) for name in NEUTRAL},
    "what was written": after(*NEUTRAL)(what_was_written),
    "everything together": everything_together,
    "ModelSummary": summaries_count_the_whole_model,
    "gradient_clip_val by norm": clipped("norm", 0.05),
    "gradient_clip_val by value": clipped("value", 0.01),
    "scheduler by step": scheduled("step", period=5, every=5),
    "scheduler by epoch": scheduled("epoch", period=1, every=BATCHES),
    "ReduceLROnPlateau": plateau,
    "GradientAccumulationScheduler": accumulation_by_epoch,
    "parameter groups": parameter_groups,
    "mixed precision": mixed_precision,
    "lengths": lengths,
    "max_time": max_time,
    "EarlyStopping stops all": early_stopping,
    "all_gather, print, torchmetrics": modules_that_talk,
    "torch.compile of the inner model": compiled_inner_model,
    "activation checkpointing": activation_checkpointing,
    "validate, test, predict": other_loops,
    **REFUSED,
}
