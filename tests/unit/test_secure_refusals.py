"""What is refused by name where sums are secure, before any training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, TensorDataset

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.callbacks import ClientSight, Timeline
from lightning_parablock.elastic.run_site import site_options
from lightning_parablock.errors import ConfigurationError, RosterError, SubmissionError
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.loading.clients_data import HostedClients
from lightning_parablock.loading.fit_loaders import FitLoaders, JoiningRules, LoaderRules
from lightning_parablock.masking.recorded import Record, RecordedMasks
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.settings import AGGREGATIONS, SecureAggregation, Settings
from lightning_parablock.strategy.private import member_of
from lightning_parablock.strategy.secure import SecureFit, require_member
from lightning_parablock.strategy.secure_elastic import ElasticSums, refuse_handed_buffers
from lightning_parablock.strategy.secure_refusals import (
    refuse_insecure_sums,
    refuse_remade_loaders,
    refuse_telling_callbacks,
)
from tests.masking.sessions import names, session
from tests.site_kit.sites import identities, signed, unsigned
from tests.support.lightning_run import Steps, TaskModule, trainer_for
from tests.tasks import adamw_default, transformer_task

ONE_EACH = [(0,), (1,), (2,), (3,)]
THREE_EACH = [tuple(range(3 * site, 3 * site + 3)) for site in range(4)]


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"compression": "int8"}, "compression=Int8 with aggregation='secure' is not supported"),
        ({"compression": "int4"}, "compression=Int4"),
        ({"compression": "topk"}, "compression=TopK"),
        ({"compression": "sparse"}, "compression=Sparse"),
        ({"weighting": "samples"}, "needs 2 bytes per value"),
        ({"block_order": "importance"}, "tells the norms of its gradients"),
        ({"buffers": "average"}, "every client's buffers travel as they are"),
        ({"cohort": 3, "cohort_sampling": "size"}, "tells how many samples it has"),
        ({"missing_client_state": "fresh"}, "use 'error'"),
        ({"nonfinite_delta": "skip"}, "a client that is left out makes the sum one of fewer sites"),
        ({"own_local_s": 3.0}, "use own_local_steps"),
        ({"lighthouse": "hub:1", "site": "a", "min_clients": 2}, "a sum needs 3 sites"),
        (
            {"lighthouse": "hub:1", "site": "a", "min_clients": 3, "block_order": "cyclic"},
            "block_order='cyclic' with lig",
        ),
    ],
    ids=str,
)
def test_options_that_show_one_client(options: dict[str, Any], needle: str) -> None:
    with pytest.raises(ConfigurationError, match=needle):
        ParaBlockStrategy(aggregation="secure", **options)
    ParaBlockStrategy(**options)  # the plain mean takes them


def test_what_secure_sums_allow() -> None:
    assert list(AGGREGATIONS) == ["mean", "secure"]
    assert ParaBlockStrategy(aggregation="secure").settings.aggregation == SecureAggregation(1, min_sites=3)
    two = SecureAggregation(bytes_per_value=2, min_sites=5)
    settings = ParaBlockStrategy(aggregation=two, weighting="samples", compression="bf16").settings
    assert settings.aggregation is two and settings.leaves_residuals
    assert settings.fingerprint()["aggregation"] == "SecureAggregation(bytes_per_value=2, min_sites=5)"


@pytest.mark.parametrize("width", [0, 3, 4, "1"])
def test_a_wrong_width(width: Any) -> None:
    with pytest.raises(ConfigurationError, match="bytes_per_value must be 1 or 2"):
        SecureAggregation(width)


def test_two_sites_are_too_few_for_any_run() -> None:
    with pytest.raises(ConfigurationError, match="min_sites must be a whole number >= 3"):
        SecureAggregation(min_sites=2)


def settings(width: int = 1, **options: Any) -> Settings:
    return Settings(aggregation=SecureAggregation(width), **options)


@pytest.mark.parametrize(
    ("options", "hosted", "fewest"),
    [
        ({}, [(0,), (1,)], 2),
        ({"cohort": 2}, ONE_EACH, 2),
        ({"clients": 12, "cohort": 6}, THREE_EACH, 2),
        ({"block_order": "cyclic"}, ONE_EACH, 2),
        ({"block_order": "cyclic", "clients": 12, "cohort": 9}, THREE_EACH, 1),
    ],
    ids=str,
)
def test_rounds_with_too_few_sites(options: dict[str, Any], hosted: list[tuple[int, ...]], fewest: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"may bring only {fewest} together in a sum of one block"):
        refuse_insecure_sums(settings(**options), hosted, n_blocks=2)


def test_availability_counts_line_by_line(tmp_path: Path) -> None:
    trace = tmp_path / "available.txt"
    trace.write_text("0 1 2 3\n1 2\n")
    with pytest.raises(ConfigurationError, match="may bring only 2 together"):
        refuse_insecure_sums(settings(availability=str(trace)), ONE_EACH, n_blocks=2)
    trace.write_text("0 1 2 3\n1 2 3\n")
    refuse_insecure_sums(settings(availability=str(trace)), ONE_EACH, n_blocks=2)


@pytest.mark.parametrize(
    ("options", "hosted"),
    [
        ({}, ONE_EACH),
        ({"clients": 12, "cohort": 7}, THREE_EACH),
        ({"clients": 12, "block_order": "cyclic"}, THREE_EACH),
    ],
    ids=str,
)
def test_rounds_with_enough_sites(options: dict[str, Any], hosted: list[tuple[int, ...]]) -> None:
    refuse_insecure_sums(settings(**options), hosted, n_blocks=3)


def test_more_clients_than_a_width_takes() -> None:
    hosted = [tuple(range(6 * site, 6 * site + 6)) for site in range(3)]
    with pytest.raises(ConfigurationError, match=r"at most 16 clients in 1 byte\(s\) .* has 18"):
        refuse_insecure_sums(settings(clients=18), hosted, n_blocks=2)
    refuse_insecure_sums(settings(2, clients=18), hosted, n_blocks=2)


@pytest.mark.parametrize(
    ("callback", "needle"),
    [
        (ClientSight(), "use shared='nothing'"),
        (Timeline(), "own_only=True"),
        (ModelCheckpoint(monitor="val_loss"), "figures stay at their sites"),
        (ModelCheckpoint(filename="{epoch}-{val_loss:.2f}-{acc}"), "would tell the others this site's acc, val_loss"),
    ],
)
def test_callbacks_that_tell_of_clients(callback: Any, needle: str) -> None:
    trainer = trainer_for("auto", callbacks=[callback], enable_checkpointing=True)
    with pytest.raises(ConfigurationError, match=needle):
        refuse_telling_callbacks(settings(), trainer, is_fit=True)
    refuse_telling_callbacks(Settings(), trainer, is_fit=True)


class BringsAlong(TaskModule):
    """A module with callbacks of its own, which the trainer gets once it is connected."""

    def configure_callbacks(self) -> list[Callback]:
        return [ClientSight()]


@pytest.mark.parametrize("part", ["fit", "validate"])
@pytest.mark.parametrize("is_own", [False, True])
def test_they_are_refused_in_each_part_of_a_run_and_from_the_module(part: str, is_own: bool) -> None:
    trainer = trainer_for(ParaBlockStrategy(aggregation="secure"), callbacks=[] if is_own else [ClientSight()])
    module = (BringsAlong if is_own else TaskModule)(transformer_task(), adamw_default)
    with pytest.raises(ConfigurationError, match="use shared='nothing'"):
        getattr(trainer, part)(module, DataLoader(Steps(1, 0)))


def test_callbacks_that_keep_it_here() -> None:
    kept = [ClientSight(shared="nothing"), Timeline(own_only=True), EarlyStopping("val_loss")]
    saving = [ModelCheckpoint(filename="{epoch}-{step:05d}", save_top_k=-1, every_n_train_steps=2)]
    trainer = trainer_for("auto", callbacks=[*kept, *saving], enable_checkpointing=True)
    refuse_telling_callbacks(settings(), trainer, is_fit=True)
    monitoring = trainer_for("auto", callbacks=[ModelCheckpoint(monitor="val_loss")], enable_checkpointing=True)
    refuse_telling_callbacks(settings(), monitoring, is_fit=False)


def test_loaders_that_are_made_anew() -> None:
    trainer = trainer_for("auto", reload_dataloaders_every_n_epochs=1)
    with pytest.raises(
        ConfigurationError, match=r"reload_dataloaders_every_n_epochs=\.\.\.\) with aggregation='secure'"
    ):
        refuse_remade_loaders(settings(), trainer)
    refuse_remade_loaders(Settings(), trainer)
    refuse_remade_loaders(settings(), trainer_for("auto"))


def test_a_run_needs_a_signed_roster_and_its_own_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs federation=federation\.yaml"):
        require_member(None, "gloo")
    sites = identities(tmp_path, "abc")
    path = tmp_path / "federation.yaml"
    path.write_text(unsigned(sites).text)
    ours = settings(federation=str(path), keys=str(tmp_path / "a"))
    with pytest.raises(RosterError, match="sign"):
        member_of(ours, "a")
    path.write_text(signed(unsigned(sites), sites).text)
    with pytest.raises(ConfigurationError, match="are those of site 'a'"):
        member_of(ours, "b")
    member = member_of(ours, "a")
    assert require_member(member, "gloo").identity.card.name == "a"
    with pytest.raises(ConfigurationError, match="use 'gloo'"):
        require_member(member, "nccl")


def test_a_contribution_is_on_the_record_before_it_leaves_and_enters_one_sum(tmp_path: Path) -> None:
    site = Submissions.create(tmp_path)
    salt = site.begin(0, "1" * 64)
    masks = recorded(Record(site, "1" * 64, salt))
    values = torch.zeros(4, dtype=torch.int8)
    masks.apply(values, 1, 0, "values", 0)
    assert values.any()
    site.begin_again(1, "1" * 64, salt, in_flight=[1])
    with pytest.raises(SubmissionError):
        site.begin_again(1, "1" * 64, salt, in_flight=[2])
    other = recorded(Record(site, "2" * 64, salt), "other")
    before = torch.zeros(4, dtype=torch.int8)
    with pytest.raises(SubmissionError, match="round 1: this site has contributed to a sum of other sites"):
        other.apply(before, 1, 0, "values", 0)
    assert not before.any()


def recorded(record: Record, label: str = "") -> RecordedMasks:
    members = names(3)
    return RecordedMasks(members[0], members, session(members[0], members, label), record)


def test_epochs_in_which_some_clients_are_out_of_data() -> None:
    def processed(n_batches: int, **options: Any) -> object:
        hosted = HostedClients((0,), 0, 7, lambda value: [value, 5])
        rules = LoaderRules(lambda: Settings(**options), hosted, n_ranks=2, cuts=False)
        trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(_combined_loader=None))
        loader = DataLoader(TensorDataset(torch.arange(n_batches)))
        return FitLoaders(trainer, rules, lambda: None).process(loader, RunningStage.TRAINING)  # type: ignore[arg-type, return-value]

    with pytest.raises(ConfigurationError, match=r"uneven_clients='go_on' with aggregation='secure' .* \(3, 5\)"):
        processed(3, aggregation="secure")
    processed(5, aggregation="secure")
    processed(3, aggregation="secure", uneven_clients="shorten")
    processed(3)


@pytest.mark.parametrize("uneven_clients", ["go_on", "shorten"])
def test_a_site_that_comes_with_fewer_batches_than_an_epoch_has(uneven_clients: str) -> None:
    def processed(n_batches: int, **options: Any) -> object:
        names = ClientNames(("a", "b", "d"))
        hosted = HostedClients((3,), 2, 7, lambda value: [value] * 3, names)
        settings = Settings(uneven_clients=uneven_clients, **options)  # type: ignore[arg-type]
        joining = JoiningRules(lambda n_batches: 5, is_newcomer=True)
        rules = LoaderRules(lambda: settings, hosted, n_ranks=3, cuts=False, joining=joining)
        trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(_combined_loader=None))
        loader = DataLoader(TensorDataset(torch.arange(n_batches)))
        return FitLoaders(trainer, rules, lambda: None).process(loader, RunningStage.TRAINING)  # type: ignore[arg-type, return-value]

    with pytest.raises(ConfigurationError, match=r"site d has 3 training batches, .* agreed on 5 .* at least 5 b"):
        processed(3, aggregation="secure")
    processed(5, aggregation="secure")
    processed(6, aggregation="secure")
    processed(3)


def test_what_secure_sums_allow_where_sites_come_and_go() -> None:
    used = ParaBlockStrategy(aggregation="secure", lighthouse="hub:1", site="a", min_clients=3)
    assert site_options(used.settings, "a").drops and site_options(used.settings, "a").most_members == 16
    plain = ParaBlockStrategy(lighthouse="hub:1", site="a", min_clients=3)
    assert not site_options(plain.settings, "a").drops and site_options(plain.settings, "a").most_members is None


def test_a_loader_in_a_fixed_order_is_refused_where_sites_come_and_go() -> None:
    sums = ElasticSums(maker=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="could contribute the same delta to a sum of other sites"):
        sums.refuse_fixed_orders([True])
    with pytest.raises(ConfigurationError, match=r"cannot be seen of the training loader .* with shuffle=True or"):
        sums.refuse_fixed_orders([None])
    sums.refuse_fixed_orders([False])


def test_buffers_that_a_joiner_would_get_of_one_member_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"buffers 1\.running_mean, 1\.running_var, .* use layers without"):
        refuse_handed_buffers(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    module.register_buffer("constant", torch.ones(1), persistent=False)
    refuse_handed_buffers(module)
    module.register_buffer("counter", torch.ones(1, dtype=torch.int64))  # such as the number of rows seen
    with pytest.raises(ConfigurationError, match=r"^buffers counter with"):
        refuse_handed_buffers(module)


def test_a_salt_that_would_change_nothing_is_refused() -> None:
    salted = SecureFit(masks=None, salt=b"s" * 16, nonce=b"")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="use shuffle=True"):
        salted.refuse_fixed_orders([False, True])
    with pytest.raises(ConfigurationError, match=r"cannot be seen of the training loader; use a DataLoader over"):
        salted.refuse_fixed_orders([False, False, None])
    salted.refuse_fixed_orders([False, False])
    SecureFit(masks=None, salt=b"", nonce=b"").refuse_fixed_orders([True, None])  # type: ignore[arg-type]
