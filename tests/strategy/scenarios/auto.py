"""One rank of the fits with ``local_steps="auto"`` and ``compression="auto"`` that test_auto.py starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Subset

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.planning.traffic import Deltas, traffic_of_clients, traffic_of_ranks
from lightning_parablock.settings import BF16, MAX_AUTO_STEPS, Compression, Int4, Int8, NoCompression, TopK
from lightning_parablock.strategy.auto_steps import MIN_AUTO_STEPS, StepClock
from lightning_parablock.transport.link_probe import LinkSample
from tests.strategy.scenarios.resume import (
    BATCHES,
    EPOCHS,
    N_RANKS,
    RANK,
    SCRATCH,
    K,
    Net,
    Noisy,
    SaveAt,
    loaders,
    trainer_for,
    weights,
)
from tests.support.scenarios import spoiling
from tests.tasks import assert_same_bits

STEP_S = (0.25, 0.5)
"""Of each client; blocks are told apart by their cost alone."""
SLOW_LINK = LinkSample(pair_bytes=1000, elapsed_s=0.27)


class Measurements:
    """Stands in for the clock and the links, so that the K to come is known; and counts how often links were timed."""

    def __init__(self, sample: LinkSample = SLOW_LINK) -> None:
        self.timed_links = 0
        self._sample = sample

    def __enter__(self) -> Measurements:
        def time_links(strategy: ParaBlockStrategy, settings: object) -> LinkSample:
            self.timed_links += 1
            return self._sample

        self._patches = (
            patch.object(ParaBlockStrategy, "time_links", time_links),
            patch.object(StepClock, "shortest_s", STEP_S[RANK]),
        )
        for each in self._patches:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._patches:
            each.stop()


def fitted(strategy: dict[str, Any], data: str = "shuffled", **options: Any) -> tuple[Net, Trainer]:
    callbacks, ckpt_path = options.pop("callbacks", []), options.pop("ckpt_path", None)
    module, trainer = Net(), trainer_for(strategy, callbacks, **options)
    trainer.fit(module, **loaders(data), ckpt_path=ckpt_path)
    return module, trainer


def settings_of(trainer: Trainer) -> Any:
    return trainer.strategy.settings  # type: ignore[attr-defined]


def given_by(trainer: Trainer) -> dict[str, Any]:
    """What the clients of a run have agreed on."""
    settings = settings_of(trainer)
    return {"local_steps": settings.local_steps, "compression": settings.compression}


def same_as_given(auto: Net, trainer: Trainer, strategy: dict[str, Any], **options: Any) -> None:
    """The run has the bits of one that was given its K and its codec."""
    given, other = fitted({**strategy, **given_by(trainer)}, **options)
    assert settings_of(other) == settings_of(trainer)
    assert_same_bits(weights(auto), weights(given))
    assert auto.losses == given.losses[-len(auto.losses) :]


def measured(data: str = "shuffled", steps: int = 7, **strategy: Any) -> Callable[[], None]:
    def scenario() -> None:
        with Measurements() as measurements:
            module, trainer = fitted({**strategy, "local_steps": "auto"}, data, max_epochs=2)
        assert measurements.timed_links == 1
        settings = settings_of(trainer)
        assert settings.local_steps == steps, settings.local_steps
        assert settings.delay_steps == strategy.get("delay_steps", settings.local_steps)
        records = trainer.strategy.round_records  # type: ignore[attr-defined]
        assert {record.steps for record in records[:-1]} == {settings.local_steps}
        same_as_given(module, trainer, strategy, data=data, max_epochs=2)

    return scenario


def really_measured(**strategy: Any) -> Callable[[], None]:
    """Nothing is replaced: whatever K comes out, it is one K, in its limits, and what travels is what was planned."""

    def scenario() -> None:
        module, trainer = fitted({**strategy, "local_steps": "auto"}, max_epochs=1)
        settings = settings_of(trainer)
        assert not settings.pending
        assert MIN_AUTO_STEPS <= settings.local_steps == settings.delay_steps <= MAX_AUTO_STEPS
        same_as_given(module, trainer, strategy, max_epochs=1)
        sent_as_planned(trainer)

    return scenario


def sent_as_planned(trainer: Trainer) -> None:
    """In every round, from round 0 on, what travels is what was planned for the settings of the run's end."""
    found: Any = trainer.strategy
    numels = {block.name: block.numel for block in found.blocks}
    rounds = [record.round for record in found.round_records]
    assert rounds == list(range(max(1, len(rounds)))), "how many depends on the K that was measured"
    for record in found.round_records:
        planned = traffic_of_clients(numels[record.block], 2, settings_of(trainer))[RANK]
        assert (record.upload_bytes, record.download_bytes) == (planned.upload_bytes, planned.download_bytes)


def codec(
    expected: Compression, steps: int, share: float = 1.0, precision: Any = "32-true", **strategy: Any
) -> Callable[[], None]:
    """The clients agree on a codec over a link of which so large a share is left, and on K where that is open, too."""

    def scenario() -> None:
        options: dict[str, Any] = {"max_epochs": 2, "precision": precision}
        sample = LinkSample(SLOW_LINK.pair_bytes, SLOW_LINK.elapsed_s / share)
        with Measurements(sample) as measurements:
            module, trainer = fitted({**strategy, "compression": "auto"}, **options)
        assert measurements.timed_links == 1
        settings = settings_of(trainer)
        assert (settings.compression, settings.local_steps, settings.pending) == (expected, steps, ())
        same_as_given(module, trainer, strategy, **options)
        if "clients" not in strategy:
            sent_as_planned(trainer)

    return scenario


def in_turns(steps: int, **strategy: Any) -> Callable[[], None]:
    """More clients than ranks, or cohorts: also epochs, validation and rates of the whole run are those of its K."""

    def scenario() -> None:
        with Measurements() as measurements:
            module, trainer = fitted({**strategy, "local_steps": "auto"}, max_epochs=2)
        assert measurements.timed_links == 1
        assert settings_of(trainer).local_steps == steps, settings_of(trainer).local_steps
        same_as_given(module, trainer, strategy, max_epochs=2)

    return scenario


def really_measured_in_turns(**strategy: Any) -> Callable[[], None]:
    """What travels in each round is what was planned for its cohort."""

    def scenario() -> None:
        module, trainer = fitted({**strategy, "local_steps": "auto"}, max_epochs=1)
        used: Any = trainer.strategy
        settings, by_rank, cohorts = settings_of(trainer), used.hosting.by_rank, used.session.engine.schedule.cohorts
        assert MIN_AUTO_STEPS <= settings.local_steps == settings.delay_steps <= MAX_AUTO_STEPS
        same_as_given(module, trainer, strategy, max_epochs=1)
        numels = {block.name: block.numel for block in used.blocks}
        sent: dict[int, list[Any]] = {}
        for record in used.round_records:
            sent.setdefault(record.round, []).append(record)
        assert sent
        for t, records in sent.items():
            counts = [len(set(cohorts.of_round(t)) & set(clients)) for clients in by_rank]
            deltas = [Deltas(n, sum(counts) - n) for n in counts]
            planned = traffic_of_ranks(numels[records[0].block], deltas, settings)[RANK]
            assert sum(record.upload_bytes for record in records) == planned.upload_bytes, (t, counts)
            assert sum(record.download_bytes for record in records) == planned.download_bytes, (t, counts)

    return scenario


def an_epoch_that_ends_as_they_agree() -> None:
    """Four batches, of which the last one is made before anybody knows that it is the last: it is validated as such."""
    ended: list[list[str]] = []
    for local_steps in ("auto", MIN_AUTO_STEPS):
        seen: list[str] = []
        module = Net()
        trainer = trainer_for(
            {"local_steps": local_steps, "clients": N_RANKS}, [Noted(seen)], max_epochs=2, val_check_interval=1.0
        )
        four = DataLoader(Subset(Noisy(), range(8)), batch_size=2, shuffle=True)
        with Measurements(LinkSample(1_000_000, 1e-6)):
            trainer.fit(module, four, DataLoader(Noisy(), batch_size=4))
        assert settings_of(trainer).local_steps == MIN_AUTO_STEPS
        ended.append([*seen, str(hash_tensors(weights(module).values()))])
    assert ended[0] == ended[1]
    assert ended[0][:-1] == ["validation after 4", "epoch after 4", "validation after 8", "epoch after 8"]


class Noted(Callback):
    """Notes when epochs end and when the model is validated."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seen.append(f"validation after {trainer.global_step}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(f"epoch after {trainer.global_step}")


@spoiling
def a_validation_interval_longer_than_the_epoch() -> None:
    strategy = {"local_steps": "auto", "clients": 4}
    with Measurements(), pytest.raises(ConfigurationError, match="val_check_interval=500 is more than the"):
        fitted(strategy, max_epochs=1, val_check_interval=500)


def a_rate_that_no_turn_may_divide() -> None:
    class Slow(Net):
        def configure_optimizers(self) -> Any:
            optimizers, schedules = super().configure_optimizers()
            return optimizers, [{**schedules[0], "frequency": 2}]

    trainer = trainer_for({"local_steps": "auto", "clients": 4}, [], max_epochs=1)
    with pytest.raises(ConfigurationError, match="1 for each of its local steps, whose number is 'auto'"):
        trainer.fit(Slow(), **loaders("shuffled"))


def resumed(step: int, **strategy: Any) -> Callable[[], None]:
    """A run that goes on does not measure again: its checkpoint tells what was found, be it "auto" here or given."""

    def scenario() -> None:
        path, auto = SCRATCH / f"auto-{step}.ckpt", {"local_steps": "auto", **strategy}
        with Measurements():
            saving, trainer = fitted(auto, callbacks=[SaveAt("on_train_batch_end", step, path)])
        for settings in (auto, {**strategy, **given_by(trainer)}):
            with Measurements(LinkSample(1, 100.0)) as measurements:
                module, again = fitted(settings, ckpt_path=path)
            assert measurements.timed_links == 0
            if "clients" not in strategy:  # else a rank may idle
                assert len(module.losses) == BATCHES * EPOCHS - step
            assert module.losses and module.losses == saving.losses[-len(module.losses) :]
            assert settings_of(again) == settings_of(trainer)
            assert_same_bits(weights(module), weights(saving))
        same_as_given(saving, trainer, strategy)

    return scenario


def resumed_before_they_agreed() -> None:
    path = SCRATCH / "early.ckpt"
    with Measurements():
        fitted({"local_steps": "auto"}, callbacks=[SaveAt("on_train_batch_end", 2, path)], max_steps=3)
        with pytest.raises(ConfigurationError, match="saved with local_steps='auto', this run has 9"):
            fitted({"local_steps": 9}, ckpt_path=path)
    with Measurements(LinkSample(1000, 0.001)) as measurements:  # so fast that the least K would do
        module, trainer = fitted({"local_steps": "auto"}, ckpt_path=path)
    assert measurements.timed_links == 1
    assert settings_of(trainer).local_steps == 2 + MIN_AUTO_STEPS
    same_as_given(module, trainer, {})


def resumed_before_they_agreed_on_a_codec() -> None:
    """Also one step before round 0 ends: that step is timed, and over so slow a link int4 is the best of all codecs."""
    for step in (2, K - 1):
        path = SCRATCH / f"early-codec-{step}.ckpt"
        auto, given = {"compression": "auto"}, {"compression": Int8(64)}
        fitted(auto, callbacks=[SaveAt("on_train_batch_end", step, path)], max_steps=step)
        with pytest.raises(ConfigurationError, match=r"saved with compression='auto', this run has Int8\(group=64\)"):
            fitted(given, ckpt_path=path)
        with patch.object(ParaBlockStrategy, "time_links", lambda *_: LinkSample(1, 1.0)):
            module, trainer = fitted(auto, ckpt_path=path)
        assert settings_of(trainer).compression == Int4()
        same_as_given(module, trainer, {})


def resumed_with_the_codec_of_the_checkpoint() -> None:
    """Also one with settings of its own, of a run that was given it."""
    path, given = SCRATCH / "given-codec.ckpt", {"compression": TopK(1 / 8)}
    saving, trainer = fitted(given, callbacks=[SaveAt("on_train_batch_end", 6, path)])
    module, again = fitted({"compression": "auto"}, ckpt_path=path)
    assert settings_of(again) == settings_of(trainer)
    assert_same_bits(weights(module), weights(saving))


def ends_before_they_agree() -> None:
    with Measurements() as measurements:
        module, trainer = fitted({"local_steps": "auto"}, max_steps=3)
    assert measurements.timed_links == 0
    assert settings_of(trainer).pending
    given, _ = fitted({"local_steps": 5}, max_steps=3)
    assert_same_bits(weights(module), weights(given))
    module, trainer = fitted({"compression": "auto"}, max_steps=3)
    assert settings_of(trainer).pending == ("compression",)
    assert_same_bits(weights(module), weights(given))


def a_link_too_slow() -> None:
    with Measurements(LinkSample(1, 100.0)):
        _, trainer = fitted({"local_steps": "auto"}, max_epochs=1)
    assert settings_of(trainer).local_steps == MAX_AUTO_STEPS


def one_fit_after_another() -> None:
    module, trainer = Net(), trainer_for({"local_steps": "auto"}, [], max_epochs=1)
    with Measurements() as measurements:
        trainer.fit(module, **loaders("shuffled"))
        first = settings_of(trainer)
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, **loaders("shuffled"))
    assert measurements.timed_links == 1
    assert settings_of(trainer) == first


def capped() -> None:
    """One client caps what it sends, on an otherwise fast link: all take the K that this asks for."""
    cap_bps = [None, 8 * SLOW_LINK.pair_bytes / SLOW_LINK.elapsed_s][RANK]
    with Measurements(LinkSample(1000, 1e-6)):
        _, trainer = fitted({"local_steps": "auto", "upload_bps": cap_bps}, max_epochs=1, max_steps=MIN_AUTO_STEPS)
    assert settings_of(trainer).local_steps == 7


def not_on_every_client() -> None:
    with pytest.raises(ConfigurationError, match="local_steps"):
        fitted({"local_steps": "auto" if RANK else MAX_AUTO_STEPS}, max_steps=1)


def random_state_is_left_alone() -> None:
    """The probe of the links draws nothing: the state after it is the one before it."""
    strategy = trainer_for({"local_steps": "auto"}, [], max_steps=5).strategy
    seen: list[bool] = []
    real = ParaBlockStrategy.time_links

    def time_links(self: ParaBlockStrategy, settings: Any) -> LinkSample | None:
        before = torch.get_rng_state()
        sample = real(self, replace(settings, chunk_bytes=4096))
        seen.append(torch.equal(before, torch.get_rng_state()))
        return sample

    assert isinstance(strategy, ParaBlockStrategy)
    with patch.object(ParaBlockStrategy, "time_links", time_links):
        fitted({"local_steps": "auto"}, max_steps=5)
    assert seen == [True]


SCENARIOS: dict[str, Callable[[], object]] = {
    "slowest client": measured(),
    "star": measured(topology="star", steps=10),
    "delay given": measured(delay_steps=3),
    "no delay in the first rounds": measured(delay_warmup_rounds=2),
    "two clients per rank": in_turns(6, clients=4),
    "two and three clients per rank": in_turns(5, clients=5),
    "cohorts": in_turns(23, clients=5, cohort=3, topology="star", weighting="samples"),
    "one client in turn": in_turns(14, clients=4, cohort=1, cohort_sampling="rotation"),
    "cohorts, no delay in the first round": in_turns(13, clients=5, cohort=3, delay_warmup_rounds=1),
    "real, cohorts": really_measured_in_turns(clients=5, cohort=3),
    "real, two clients per rank, star": really_measured_in_turns(clients=4, topology="star", compression="int8"),
    "cohorts, resumed in round 0": resumed(6, clients=4, cohort=3),
    "cohorts, resumed later": resumed(22, clients=4, cohort=3),
    "an epoch of one round": an_epoch_that_ends_as_they_agree,
    "validation too seldom": a_validation_interval_longer_than_the_epoch,
    "rates within a turn": a_rate_that_no_turn_may_divide,
    "uneven": measured(data="uneven"),
    "iterable": measured(data="iterable"),
    "capped": capped,
    "real, sharded": really_measured(topology="sharded"),
    "real, star": really_measured(topology="star"),
    "real, int4": really_measured(compression="int4"),
    "codec: none is enough": codec(NoCompression(), 7, local_steps=7),
    "codec: two steps": codec(NoCompression(), 2, 4.0, local_steps=2),
    "codec: bf16": codec(BF16(), 4),
    "codec: int8, star": codec(Int8(), 4, 0.7, topology="star"),
    "codec: bf16-true": codec(Int8(), 4, 0.5, precision="bf16-true"),
    "codec: not even int4": codec(Int4(), 4, 0.1),
    "codec and local steps": codec(BF16(), 4, local_steps="auto"),
    "codec and more local steps": codec(Int4(), 10, 0.1, local_steps="auto"),
    "codec and local steps, delay given": codec(Int4(), 10, 0.1, local_steps="auto", delay_steps=3),
    "codec, cohorts": codec(Int4(), 4, 0.5, clients=5, cohort=3),
    "codec and local steps, two clients per rank": codec(Int4(), 6, 0.15, local_steps="auto", clients=4),
    "codec, real": really_measured(compression="auto"),
    "codec, capped": really_measured(compression="auto", upload_bps=5e5),
    "codec, resumed in round 0": resumed(6, compression="auto"),
    "codec, resumed later": resumed(22, compression="auto"),
    "codec with the given K, resumed later": resumed(14, compression="auto", local_steps=K),
    "codec, cohorts, resumed later": resumed(22, compression="auto", clients=4, cohort=3),
    "codec, resumed early": resumed_before_they_agreed_on_a_codec,
    "codec of the checkpoint": resumed_with_the_codec_of_the_checkpoint,
    "resumed in round 0": resumed(6),
    "resumed later": resumed(22),
    "resumed early": resumed_before_they_agreed,
    "short": ends_before_they_agree,
    "too slow": a_link_too_slow,
    "twice": one_fit_after_another,
    "differs": not_on_every_client,
    "random state": random_state_is_left_alone,
}
