"""One rank of the fits that test_sight.py starts: what is told of each client, and what leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_parablock.callbacks import ClientSight, Timeline
from lightning_parablock.callbacks.sight_figures import ClientFigures, Sums
from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models import CausalLM
from lightning_parablock.records import RoundRecord
from lightning_parablock.strategy.parablock import ParaBlockStrategy
from lightning_parablock.strategy.ranks import RankStrategy
from tests.strategy.scenarios.toys import N_RANKS, RANK, STEPS, TASK, Do, K, batches, on_all, oracle, run, strategy
from tests.support.here import SCRATCH
from tests.support.lightning_run import Steps, TaskModule, trainer_for
from tests.support.scenarios import Scenario
from tests.tasks import adamw_default, assert_same_bits
from tests.unit.tiny_text import byte_tokenizer, save_tiny_llama, write_jsonl

FOLDER = SCRATCH / str(RANK)
PREFIX = "parablock/"


class Kept(Logger):
    """Keeps the figures that it is given, on every rank."""

    name = version = None

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.rows.append((step, {k.removeprefix(PREFIX): v for k, v in metrics.items() if k.startswith(PREFIX)}))


def text_data(client: int | None = None) -> FederatedTextDataModule:
    """Sums of different lengths, half of them each client's; alone, for any client."""
    path = FOLDER / "sums.jsonl"
    if not path.exists():
        rows = ({"q": f"{i}+{i}", "a": f"{2 * i}" * (1 + i % 3), "task": f"kind {i % 3}"} for i in range(90))
        write_jsonl(path, rows)
    options: dict[str, Any] = {} if client is None else {"n_clients": N_RANKS, "client_id": client}
    data = FederatedTextDataModule(
        str(path), prompt_field="q", answer_field="a", sequence_length=16, partition="dirichlet", alpha=1.0,
        label_field="task", val_fraction=0.2, client_val_fraction=0.2, batch_size=2, val_batch_size=3, seed=0,
        **options,
    )  # fmt: skip
    data.tokenizer = byte_tokenizer()
    if client is not None:
        data.setup("fit")
    return data


def fit_text(sight: ClientSight, *more: Callback) -> tuple[Trainer, list[dict[str, float]]]:
    """Twelve steps with a validation after each six; the trainer and the rows that were logged with losses."""
    kept = Kept()
    used = ParaBlockStrategy(local_steps=3, blocks=2, seed=3, exchange_timeout_s=60)
    trainer = trainer_for(
        used, devices=N_RANKS, max_epochs=None, max_steps=12, val_check_interval=6, use_distributed_sampler=True,
        num_sanity_val_steps=2, logger=kept,
        callbacks=[sight, Timeline(str(FOLDER / "lines"), sight.shared != "clients"), *more],
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(CausalLM(str(FOLDER / "llama"), learning_rate=0.02), datamodule=text_data())
    return trainer, [row for _, row in kept.rows if any(name.startswith("val_loss") for name in row)]


def mean_alone(module: CausalLM, examples: Any, chosen: list[int] | None = None) -> float:
    """Loss a token over some examples, one at a time."""
    sums = [0.0, 0]
    for index in range(len(examples)) if chosen is None else chosen:
        one = {name: tensor.unsqueeze(0) for name, tensor in examples[index].items()}
        with torch.no_grad():
            total, count = module.losses(one)
        sums[0] += float(total)
        sums[1] += int(count)
    return sums[0] / sums[1]


def figures_equal_those_computed_alone() -> None:
    """From the checkpoint that was saved at the last validation, and each client's rows, without any other client."""
    saved = SCRATCH / "at-validation.ckpt"  # written by the first rank
    save = Do(on_validation_end=lambda trainer, module: trainer.save_checkpoint(saved))
    trainer, rows = fit_text(ClientSight(), save)
    assert len(rows) == 2  # and none of the sanity check
    module = CausalLM(str(FOLDER / "llama"))
    module.load_state_dict(torch.load(saved, weights_only=True)["state_dict"])
    alone = [mean_alone(module.eval(), text_data(client).own_val_set) for client in range(N_RANKS)]
    last = rows[-1]
    assert [last[f"val_loss_client_{i}"] for i in range(N_RANKS)] == pytest.approx(alone, rel=1e-5)
    assert last["val_loss_worst"] == pytest.approx(max(alone), rel=1e-5)
    assert last["val_loss_mean"] == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert last["val_loss_spread"] == pytest.approx(abs(alone[0] - alone[1]), rel=1e-3)
    assert last["val_loss_std"] == pytest.approx(abs(alone[0] - alone[1]) / 2, rel=1e-3)
    assert abs(alone[0] - alone[1]) > 0.01
    data = text_data(0)
    kinds = [row.values["task"] for row in data._rows().validation]
    assert set(kinds) == {"kind 0", "kind 1", "kind 2"} and len(kinds) == len(data.val_set)
    for kind in set(kinds):
        chosen = [index for index, other in enumerate(kinds) if other == kind]
        expected = mean_alone(module, data.val_set, chosen)
        assert last[f"val_loss_label_{kind}"] == pytest.approx(expected, rel=1e-5)
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(mean_alone(module, data.val_set), rel=1e-5)
    assert float(trainer.callback_metrics["parablock/val_loss_worst"]) == pytest.approx(max(alone), rel=1e-5)
    assert on_all(last)[0] == on_all(last)[1]


def flat_values(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for one in value for leaf in flat_values(one)]
    if isinstance(value, dict):
        return [leaf for item in value.items() for leaf in flat_values(item)]
    return [value]


def aggregates_send_sums_alone() -> None:
    """The same figures over the clients as when all is told, by three reductions, and no client's own anywhere."""
    _, told = fit_text(ClientSight("clients"))
    gathered: list[Any] = []
    reduced: list[tuple[str, list[float]]] = []
    gather, reduce = RankStrategy.gather_objects, RankStrategy.reduce

    def spy_on_gather(self: Any, value: Any) -> Any:
        gathered.append(value)
        return gather(self, value)

    def spy_on_reduce(self: Any, tensor: Tensor, group: Any = None, reduce_op: Any = "mean") -> Any:
        if tensor.dtype == torch.float64 and tensor.ndim == 1:
            reduced.append((reduce_op, tensor.tolist()))
        return reduce(self, tensor, group, reduce_op)

    with (
        mock.patch.object(RankStrategy, "gather_objects", spy_on_gather),
        mock.patch.object(RankStrategy, "reduce", spy_on_reduce),
    ):
        trainer, rows = fit_text(ClientSight("aggregates"))
    shared = [{name: value for name, value in row.items() if "_client_" not in name} for row in told]
    assert [sorted(row) for row in rows] == [sorted(row) for row in shared]
    for row, expected in zip(rows, shared, strict=True):
        assert row == pytest.approx(expected, rel=1e-9)
    assert not [name for name in trainer.callback_metrics if "_client_" in name]

    own = [one for one in flat_values(gathered) if isinstance(one, (ClientFigures, RoundRecord, float))]
    assert own == []
    sizes = (len(Sums.of([ClientFigures(0)]).peaks) + 2, len(Sums.of([ClientFigures(0)]).added))
    a_validation = [("max", sizes[0]), ("sum", sizes[1]), ("sum", 2 * 3)]
    assert [(how, len(values)) for how, values in reduced] == [*a_validation, *a_validation, *a_validation[:2]]

    events = [json.loads(path.read_text())["traceEvents"] for path in FOLDER.glob("lines/*.json")]
    assert [{event["pid"] for event in some} for some in events] == ([{0}] if RANK == 0 else [])


def nothing_is_told() -> None:
    """Each client's own figures stay with it, and are what the others would have been told."""
    _, told = fit_text(ClientSight("clients"))
    folder = FOLDER / "own"
    with mock.patch("lightning_parablock.callbacks.sight.gather_objects", side_effect=AssertionError):
        _, rows = fit_text(ClientSight("nothing", folder=str(folder)))
    (file,) = folder.iterdir()
    assert file.name == f"sight-client{RANK}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [6, 12, 12]
    name = f"val_loss_client_{RANK}"
    assert [row[name] for row in rows] == [row[name] for row in told] == [line[PREFIX + name] for line in lines[:2]]
    assert not [key for row in rows for key in row if f"_client_{1 - RANK}" in key or "worst" in key]


def uneven_clients_take_part_unevenly() -> None:
    """Client 0 has data for five steps, client 1 for fourteen; an unedited module that logs its loss."""
    sight, kept = ClientSight(), Kept()
    module = TaskModule(TASK, adamw_default)
    train = DataLoader(Steps((5, 14)[RANK], RANK), batch_size=1)
    used = strategy(uneven_clients="go_on")
    trainer = trainer_for(used, devices=N_RANKS, max_epochs=1, callbacks=[sight], val_check_interval=8, logger=kept)
    trainer.fit(module, train, batches(2 + RANK))
    step, last = kept.rows[-1]
    assert step == 14
    assert [last[f"participation_client_{i}"] for i in range(2)] == [2 / 4, 1]
    assert (last["participation_mean"], last["participation_min"]) == (0.75, 0.5)
    # A sample of this task is two numbers, whose first is a tensor of one.
    assert [last[f"samples_client_{i}"] for i in range(2)] == [5, 14]
    assert last["samples_total"] == 19
    assert last["drift_max"] >= last["drift_mean"] > 0
    validated = next(row for _, row in kept.rows if "val_loss_mean" in row)
    assert validated["val_loss_client_0"] != validated["val_loss_client_1"]
    expected = (2 * validated["val_loss_client_0"] + 3 * validated["val_loss_client_1"]) / 5
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(expected, rel=1e-5)


def it_changes_no_bit() -> None:
    """With sight and its validations, the weights of the oracle."""
    for shared in ("clients", "aggregates", "nothing"):
        module = run(callbacks=[ClientSight(shared, folder=str(FOLDER / "bits"))], val_check_interval=3)
        assert_same_bits(module.weights(), oracle(STEPS))
        assert [record.samples for record in module.trainer.strategy.round_records] == [K, K, K, STEPS % K]  # type: ignore[attr-defined]


def clients_must_agree() -> None:
    """One that would tell less than the others is refused before training, and so is one without sight."""
    for callbacks in ([ClientSight(("clients", "aggregates")[RANK])], [ClientSight()] * (1 - RANK)):
        with pytest.raises(ConfigurationError, match="the list of callbacks differs between clients"):
            run(callbacks=callbacks)


class Labelled(Steps):
    """Samples with a label whose name is the client's own."""

    @property
    def label_names(self) -> list[str]:
        return ["both", f"of {RANK}"]

    @property
    def row_labels(self) -> list[int]:
        return [i % 2 for i in range(self.n_steps)]


class Returning(TaskModule):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        client, step = (int(part) for part in batch)
        return {"loss_sums": torch.tensor([float(step + 1)]), "loss_counts": torch.tensor([1 + client])}


def labels_of_their_own() -> None:
    """In sums they are left out, since a label's name is its client's; told, they stand beside each other."""
    seen: dict[str, dict[str, float]] = {}
    for shared in ("aggregates", "clients"):
        val = DataLoader(Labelled(4, RANK), batch_size=1)
        sight: Any = ClientSight(shared)
        module = run(Returning(TASK, adamw_default), val=val, callbacks=[sight], max_epochs=1)
        metrics = module.trainer.callback_metrics
        seen[shared] = {k.removeprefix(PREFIX + "val_loss_"): float(v) for k, v in metrics.items() if "val_loss_" in k}
    assert seen["aggregates"] == {"mean": 1.875, "worst": 2.5, "spread": 1.25, "std": 0.625}
    labels = {"label_both": (2 * 4.0) / (2 + 4), "label_of 0": 3.0, "label_of 1": 1.5}
    assert seen["clients"] == pytest.approx({**seen["aggregates"], **labels, "client_0": 2.5, "client_1": 1.25})


SCENARIOS: dict[str, Callable[[], None]] = {
    "figures equal those computed alone": figures_equal_those_computed_alone,
    "aggregates": aggregates_send_sums_alone,
    "nothing": nothing_is_told,
    "uneven clients": uneven_clients_take_part_unevenly,
    "no bit": it_changes_no_bit,
    "agreement": clients_must_agree,
    "labels of their own": labels_of_their_own,
}


class Breaks(Callback):
    """Raises on rank 1 where the others are about to meet it."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if RANK == 1 and not trainer.sanity_checking:
            raise ZeroDivisionError("this client is broken")


def meets_it_lost(shared: Any) -> Scenario:
    """A scenario: a client is lost where the others are about to meet it."""

    def scenario() -> None:
        run(callbacks=[Breaks(), ClientSight(shared)], val_check_interval=3)
        raise SystemExit("nobody noticed")

    return scenario


ALONE = {shared: meets_it_lost(shared) for shared in ("clients", "aggregates")}


def prepare() -> None:
    """A folder of this client, with a model."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_tiny_llama(FOLDER / "llama")
