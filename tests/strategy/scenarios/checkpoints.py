"""One rank of the checkpoints that test_checkpoints.py looks at: whole, damaged, moved, or gone on from by others.

"saved" leaves a checkpoint that "went on" resumes with other ranks.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.checkpointing.sidecars import KEY, sha256_of
from lightning_parablock.errors import CheckpointError, ConfigurationError, PeerError
from lightning_parablock.strategy.fit import FitSession
from tests.strategy.scenarios.resume import (
    N_RANKS,
    RANK,
    SCRATCH,
    K,
    Net,
    SaveAt,
    loaders,
    trainer_for,
    weights,
    whole,
)
from tests.support.scenarios import Scenario, after
from tests.tasks import assert_same_bits

ONE = SCRATCH / "one.ckpt"
STEP = 14  # two steps into round 3: round 2 is in flight


def save(path: Path, step: int = STEP) -> Net:
    module = Net()
    trainer_for({}, [SaveAt("on_train_batch_end", step, path)]).fit(module, **loaders("shuffled"))
    dist.barrier()
    return module


def resume(path: Any, callbacks: list[Callback] | None = None, **strategy: Any) -> Net:
    module = Net()
    trainer_for(strategy, callbacks or []).fit(module, **loaders("shuffled"), ckpt_path=path)
    return module


def copy_of_one(name: str) -> Path:
    """The checkpoint and its sidecars under another name; on this machine the ranks share the disk."""
    path = SCRATCH / f"{name}.ckpt"
    if RANK == 0:
        shutil.copy(ONE, path)
        shutil.copytree(f"{ONE}.parablock", f"{path}.parablock")
    dist.barrier()
    return path


def sidecar(path: Path, rank: int) -> Path:
    (found,) = Path(f"{path}.parablock").glob(f"*/rank{rank:05d}.pt")
    return found


def only_on_rank_0(work: Callable[[], object]) -> None:
    if RANK == 0:
        work()
    dist.barrier()


def an_ordinary_checkpoint() -> None:
    """Tensors and plain values alone; Lightning loads it without a strategy."""
    save(ONE)
    content = torch.load(ONE, weights_only=True)
    loaded = Net.load_from_checkpoint(ONE)
    assert_same_bits(weights(loaded), content["state_dict"])
    assert content["global_step"] == STEP
    assert content[KEY]["round"] == STEP // K
    module = Net()
    Trainer(
        accelerator="cpu", devices=1, strategy="auto", max_epochs=1, limit_train_batches=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).validate(module, loaders("shuffled")["val_dataloaders"], ckpt_path=ONE, verbose=False)  # fmt: skip
    assert_same_bits(weights(module), content["state_dict"])


def refused(path: Path, said: str, **strategy: Any) -> None:
    """Refused on every rank before a training step, and taken where fresh state is allowed."""
    with pytest.raises(CheckpointError, match=said):
        resume(path, **strategy)


class FirstRound(Callback):
    """Notes where the rounds begin, and from which weights."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if not hasattr(self, "round"):
            engine: Any = trainer.strategy.session.engine  # type: ignore[attr-defined]
            self.round, self.steps = engine.round, engine.steps
            self.weights = weights(pl_module)
            self.server = engine.transport.server.state()
            assert not trainer.optimizers[0].state


def fresh(path: Path) -> None:
    first = FirstRound()
    module = resume(path, [first], missing_client_state="fresh")
    assert (first.round, first.steps) == (STEP // K, 0)
    assert_same_bits(first.weights, torch.load(path, weights_only=True)["state_dict"])
    shared: list[Any] = [None] * N_RANKS
    dist.all_gather_object(shared, hash_tensors(module.parameters()))
    assert len(set(shared)) == 1


@after("ordinary")
def a_torn_sidecar() -> None:
    path = copy_of_one("torn")
    victim = sidecar(path, 1)
    only_on_rank_0(lambda: victim.write_bytes(victim.read_bytes()[:-100]))
    refused(path, r"client 1 \(rank 1 on .*\): .* is damaged or belongs to another checkpoint .*missing_client_state")
    fresh(path)


@after("ordinary")
def a_missing_sidecar() -> None:
    path = copy_of_one("missing")
    only_on_rank_0(lambda: sidecar(path, 0).unlink())
    refused(path, r"client 0 \(rank 0 on .*\): .* is not there")
    fresh(path)


@after("ordinary")
def a_foreign_sidecar() -> None:
    other, path = SCRATCH / "other.ckpt", copy_of_one("foreign")
    save(other, STEP - 1)
    only_on_rank_0(lambda: shutil.copy(sidecar(other, 1), sidecar(path, 1)))
    refused(path, r"client 1 .* damaged or belongs to another checkpoint")


@after("ordinary")
def saves_that_do_not_belong_together() -> None:
    """Client 1's state of an earlier step under the name of this save, as two signal handlers once left it."""
    other, path = SCRATCH / "earlier.ckpt", copy_of_one("mixed")
    save(other, STEP - 5)

    def mix() -> None:
        content = torch.load(path, weights_only=True)
        foreign = sidecar(other, 1)
        content[KEY]["sidecars_sha256"][1] = sha256_of(foreign)
        shutil.copy(foreign, sidecar(path, 1))
        torch.save(content, path)

    only_on_rank_0(mix)
    refused(
        path,
        r"the clients' states beside .*mixed\.ckpt do not belong together: client 0 \(.*\) at step 14 \(round 3\); "
        r"client 1 \(.*\) at step 9 \(round 2\)",
    )
    fresh(path)


def saves_at_different_steps() -> None:
    with pytest.raises(CheckpointError, match=r"the clients save .* at different points: .* at step 14 .* at step 13"):
        save(SCRATCH / "apart-in-time.ckpt", STEP - RANK)
    assert not list(SCRATCH.glob("apart-in-time.ckpt*"))


def a_save_on_the_first_rank_alone() -> None:
    """It does not wait for an hour: the others are seen to train on."""
    said = r"client 0 \(.*\) is alone in 'gather in .*': client 1 .* trained on without it; .*save_checkpoint"
    saver = SaveAt("on_train_batch_end", STEP if RANK == 0 else -1, SCRATCH / "alone.ckpt")
    with pytest.raises(PeerError, match=said):
        trainer_for({}, [saver], limit_val_batches=0).fit(Net(), **loaders("shuffled"))  # which is a meeting, too


def a_name_for_each() -> None:
    """A metric that is not the same on all clients is part of the file's name: all take the first one's."""
    expected = save(SCRATCH / f"loss={0.5 + RANK}.ckpt")
    (found,) = SCRATCH.glob("loss=*.ckpt")
    assert found.name == "loss=0.5.ckpt"
    assert_same_bits(weights(resume(found)), weights(expected))


class OwnMetric(Callback):
    """Each client has a value of its own: what is best for one is worst for the other."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        pl_module.log("own", float(trainer.global_step * (1 - 2 * RANK)))


def best_by_a_metric_of_its_own() -> None:
    """Names and decisions are the first client's, so that each checkpoint that is kept is whole."""
    folder = SCRATCH / "own-metric"
    keep = ModelCheckpoint(folder, filename="{own:.0f}", monitor="own", every_n_train_steps=5, save_top_k=2, mode="max")
    expected = Net()
    trainer_for({}, [OwnMetric(), keep]).fit(expected, **loaders("shuffled"))
    dist.barrier()
    assert sorted(path.name for path in folder.glob("own=*.ckpt")) == ["own=25.ckpt", "own=30.ckpt"]
    assert "_monitor_candidates" not in vars(keep)
    again = ModelCheckpoint(SCRATCH / "own-again", filename="{own:.0f}", monitor="own", every_n_train_steps=5)
    assert_same_bits(weights(resume(folder / "own=25.ckpt", [OwnMetric(), again])), weights(expected))


@after("ordinary")
def looked_for_on_disks_of_their_own() -> None:
    """Only the first client has the file that "last" and "hpc" stand for."""
    own = SCRATCH / f"only{RANK}"

    def keep() -> ModelCheckpoint:
        return ModelCheckpoint(own, filename="{step}", every_n_train_steps=5, save_last=True)

    expected = Net()
    trainer_for({}, [keep()]).fit(expected, **loaders("shuffled"))
    dist.barrier()
    assert not (SCRATCH / "only1").exists()  # Lightning takes the first client's folder
    assert_same_bits(weights(resume("last", [keep()])), weights(expected))
    only_on_rank_0(lambda: (SCRATCH / "only0" / "last.ckpt").rename(SCRATCH / "only0" / "hpc_ckpt_1.ckpt"))
    only_on_rank_0(
        lambda: (SCRATCH / "only0" / "last.ckpt.parablock").rename(SCRATCH / "only0" / "hpc_ckpt_1.ckpt.parablock")
    )
    again = Net()
    trainer_for({}, [], default_root_dir=str(own)).fit(again, **loaders("shuffled"), ckpt_path="hpc")
    assert_same_bits(weights(again), weights(expected))
    with pytest.raises(ConfigurationError, match=r"no checkpoint was found on any client: .*HPC"):
        resume("hpc")
    for given in (ONE, "hpc"):
        path = given if RANK == 0 else None
        with pytest.raises(ConfigurationError, match=r"ckpt_path must be given to all .*client 1 \(.*\) has none"):
            trainer_for({}, [], default_root_dir=str(own)).fit(Net(), **loaders("shuffled"), ckpt_path=path)


@after("ordinary")
def damaged_weights() -> None:
    path = copy_of_one("damaged")

    def damage() -> None:
        content = torch.load(path, weights_only=True)
        content["state_dict"]["norm.bias"][0] += 1
        torch.save(content, path)

    only_on_rank_0(damage)
    refused(path, r"the weights in .*damaged\.ckpt are damaged \(checksum\)")


@after("ordinary")
def other_settings() -> None:
    refused(ONE, r"was saved with local_steps=4, this run has 3", local_steps=3)
    resume(ONE, exchange_timeout_s=30, chunk_bytes=8192, topology="star")  # these change no bit


@after("ordinary")
def other_blocks() -> None:
    """The same settings, but a layer is frozen now."""
    module = Net()
    module.layers[2].requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"was saved with the blocks layers\.0 \(.*, this run has layers\.0 \("):
        trainer_for({}, []).fit(module, **loaders("shuffled"), ckpt_path=ONE)


def of_another_strategy() -> None:
    path = SCRATCH / f"plain{RANK}.ckpt"
    trainer = Trainer(
        accelerator="cpu", devices=1, strategy="auto", max_epochs=1, limit_train_batches=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        limit_val_batches=0, barebones=False,
    )  # fmt: skip
    trainer.fit(Net(), **loaders("shuffled"))
    torch.save(trainer._checkpoint_connector.dump_checkpoint(), path)
    refused(path, r"plain\d\.ckpt has no clients' state beside it")


def nobody_has_it() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.ckpt does not exist"):
        resume(SCRATCH / "nowhere.ckpt")


def on_disks_of_their_own() -> None:
    """Only the first rank writes the checkpoint; the others get it from there, and their own state from their disk."""
    path = SCRATCH / f"disk{RANK}" / "apart.ckpt"
    expected = save(path)
    assert path.is_file() == (RANK == 0)
    assert [file.name for file in path.parent.glob("*.parablock/*/*")] == [f"rank{RANK:05d}.pt"]
    resumed = resume(path)
    assert_same_bits(weights(resumed), weights(expected))


def the_older_save_goes() -> None:
    path = SCRATCH / "twice.ckpt"
    save(path, 9)
    save(path, 18)
    assert [folder.name.split("-")[0] for folder in Path(f"{path}.parablock").iterdir()] == ["step00000018"]
    assert not list(SCRATCH.glob(".*.tmp"))


def a_link_to_the_last() -> None:
    """ModelCheckpoint keeps one, links to it, and removes the others with their sidecars."""
    folder = SCRATCH / "kept"
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=5, save_top_k=1, save_last="link")
    expected = Net()
    trainer_for({}, [keep]).fit(expected, **loaders("shuffled"))
    dist.barrier()
    assert (folder / "last.ckpt").is_symlink()
    assert sorted(file.name for file in folder.iterdir()) == [
        "final.ckpt",
        "last.ckpt",
        "step=30.ckpt",
        "step=30.ckpt.parablock",
    ]
    again = ModelCheckpoint(SCRATCH / "again", filename="{step}", every_n_train_steps=5, save_top_k=1)
    resumed = resume(folder / "last.ckpt", [again])
    assert_same_bits(weights(resumed), weights(expected))


@after("ordinary")
def a_full_disk() -> None:
    """One client cannot write: every rank says so, and what was saved before is still whole."""
    path = copy_of_one("full")

    def fails(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    with (
        mock.patch("lightning_parablock.checkpointing.checkpoints.write_sidecar", fails)
        if RANK == 1
        else mock.patch("os.getpid", int),
        pytest.raises(CheckpointError, match=r"client 1 .*No space left on device"),
    ):
        resume(path, [SaveAt("on_train_batch_end", STEP + 2, path)])


@after("full")
def whole_after_a_full_disk() -> None:
    assert_same_bits(weights(resume(SCRATCH / "full.ckpt")), weights(whole({})))


def the_finished_model() -> None:
    """After the last exchange, on every disk; the last checkpoint was saved before it."""
    folder, own = SCRATCH / "finished", str(SCRATCH / f"disk{RANK}" / "final.ckpt")
    keep = ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=1, save_last=True)
    module = Net()
    with mock.patch("lightning_parablock.checkpointing.final_model.final_path", return_value=own):
        trainer_for({}, [keep]).fit(module, **loaders("shuffled"))
    assert_same_parameters(torch.load(own, weights_only=True)["state_dict"], module)
    dist.barrier()
    last = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(last[name], value) for name, value in module.named_parameters())
    again = ModelCheckpoint(SCRATCH / "finished-again", save_top_k=0, save_last=True)
    resumed = resume(folder / "last.ckpt", [again])
    final = torch.load(SCRATCH / "finished-again" / "final.ckpt", weights_only=True)
    assert_same_parameters(final["state_dict"], resumed)
    assert_same_parameters(dict(resumed.named_parameters()), module)


class SavesTogether(Net):
    """Its hook is collective, as it may be at every other save."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = self.trainer.strategy.broadcast({"by": RANK})


def a_finished_model_saved_by_a_collective_hook() -> None:
    folder = SCRATCH / "together"
    keep = ModelCheckpoint(folder, save_top_k=0, save_last=True)
    module = SavesTogether()
    trainer_for({}, [keep]).fit(module, **loaders("shuffled"))
    dist.barrier()
    final = torch.load(folder / "final.ckpt", weights_only=True)
    assert final["seen"] == {"by": 0}
    assert_same_parameters(final["state_dict"], module)


class NoStep(Net):
    def training_step(self, *_: Any) -> Any:
        raise AssertionError("this is refused before the training")


def a_folder_that_one_client_cannot_write() -> None:
    """As with sites whose run folders have different absolute paths."""
    (SCRATCH / "in the way").touch()
    folder = SCRATCH / "in the way" / "checkpoints" if RANK == 1 else SCRATCH / "free"
    keep = ModelCheckpoint(SCRATCH / "free", save_last=True)
    with (
        mock.patch("lightning_parablock.strategy.parablock.checkpoint_folders", return_value=[folder]),
        pytest.raises(CheckpointError, match=r"client 1 .*in the way.*is a file; name another place"),
    ):
        trainer_for({}, [keep]).fit(NoStep(), **loaders("shuffled"))


def a_folder_that_the_first_site_alone_names() -> None:
    """Lightning takes the first one's; a site does not write outside its own folders because another one says so."""
    keep = ModelCheckpoint(SCRATCH / "of sites" / str(RANK), save_last=True)
    said = (
        r"site b .*: site a keeps checkpoints in .*of sites/0, and this site writes its part to its own folders alone"
    )
    with pytest.raises(CheckpointError, match=said):
        trainer_for({"site": "ab"[RANK]}, [keep], default_root_dir=str(SCRATCH / "b")).fit(
            NoStep(), **loaders("shuffled")
        )
    assert not (SCRATCH / "of sites").exists()


def assert_same_parameters(state: Mapping[str, torch.Tensor], module: Net) -> None:
    assert_same_bits(
        {name: state[name] for name, _ in module.named_parameters()},
        {name: value.detach() for name, value in module.named_parameters()},
    )


class Breaks(Callback):
    """Raises on every rank in the middle of a round, and notes W."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == STEP:
            self.committed = trainer.strategy.lightning_module_state_dict()
            self.local = weights(pl_module)
            dist.barrier()  # else the first one's error would be the other's
            raise ZeroDivisionError


def the_last_committed_model_is_kept() -> None:
    breaks = Breaks()
    with pytest.raises(ZeroDivisionError):
        trainer_for({}, [breaks]).fit(Net(), **loaders("shuffled"))
    if RANK == 0:
        content = torch.load(SCRATCH / "rescued.ckpt", weights_only=True)
        assert_same_bits(content["state_dict"], breaks.committed)
        assert any(not torch.equal(breaks.local[name], value) for name, value in breaks.committed.items())


def go_on_with_other_ranks() -> None:
    """The committed model, the server's state and the round go on, whatever the number of ranks."""
    first = FirstRound()
    resume(ONE, [first])
    content = torch.load(ONE, weights_only=True)
    assert (first.round, first.steps) == (content[KEY]["round"], 0)
    assert_same_bits(first.weights, content["state_dict"])
    old = [torch.load(sidecar(ONE, rank), weights_only=True)["own"]["engine"]["server"] for rank in (0, 1)]
    expected = velocity([piece for pieces in old for piece in pieces])
    everyone: list[Any] = [None] * N_RANKS
    if N_RANKS > 1:
        dist.all_gather_object(everyone, [vars(piece) for piece in first.server])
    else:
        everyone = [[vars(piece) for piece in first.server]]
    actual = velocity([piece for pieces in everyone for piece in pieces])
    assert actual.keys() == expected.keys()
    assert any(value.abs().sum() > 0 for value in expected.values())
    assert all(torch.equal(actual[block], value) for block, value in expected.items())


def velocity(pieces: list[dict[str, Any]]) -> dict[int, torch.Tensor]:
    """The whole velocity of each block."""
    ordered = sorted(pieces, key=lambda piece: (piece["block"], piece["first"]))
    blocks = {piece["block"] for piece in ordered}
    return {b: torch.cat([piece["values"] for piece in ordered if piece["block"] == b]) for b in blocks}


def the_first_is_killed_at_the_end() -> None:
    expected, module = whole({}), Net()

    def kill(_: Any) -> None:
        time.sleep(2)  # the other merges what this one has sent
        os.kill(os.getpid(), signal.SIGKILL)

    folder = SCRATCH / f"killed{RANK}"
    with mock.patch.object(FitSession, "_refuse_divergence", kill) if RANK == 0 else nullcontext():
        try:
            trainer_for({}, [], default_root_dir=str(folder)).fit(module, **loaders("shuffled"))
        finally:
            assert_same_parameters(torch.load(folder / "final.ckpt", weights_only=True)["state_dict"], expected)
            assert [path.name for path in folder.iterdir()] == ["final.ckpt"]
            print("HOLDS the finished model is on the disk", flush=True)


SCENARIOS: dict[str, Scenario] = {
    "ordinary": an_ordinary_checkpoint,
    "torn": a_torn_sidecar,
    "missing": a_missing_sidecar,
    "foreign": a_foreign_sidecar,
    "mixed": saves_that_do_not_belong_together,
    "different steps": saves_at_different_steps,
    "alone": a_save_on_the_first_rank_alone,
    "names": a_name_for_each,
    "own metric": best_by_a_metric_of_its_own,
    "looked for": looked_for_on_disks_of_their_own,
    "damaged": damaged_weights,
    "settings": other_settings,
    "blocks": other_blocks,
    "strategy": of_another_strategy,
    "nowhere": nobody_has_it,
    "disks": on_disks_of_their_own,
    "twice": the_older_save_goes,
    "link": a_link_to_the_last,
    "full": a_full_disk,
    "whole": whole_after_a_full_disk,
    "finished": the_finished_model,
    "together": a_finished_model_saved_by_a_collective_hook,
    "folder": a_folder_that_one_client_cannot_write,
    "foreign folder": a_folder_that_the_first_site_alone_names,
    "last committed": the_last_committed_model_is_kept,
    "saved": lambda: save(ONE),
    "went on": go_on_with_other_ranks,
}
LEAVES_THREADS = True
ALONE = {"killed": the_first_is_killed_at_the_end}
