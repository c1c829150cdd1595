"""A wrong setting is one clear error that names it and, where there is one, the nearest right value."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.options import options_of
from lightning_parablock.settings import (
    BF16,
    COMPRESSIONS,
    OWN_SETTINGS,
    Int4,
    Int8,
    LowRank,
    MeanAggregation,
    NoCompression,
    ServerAdam,
    ServerNesterov,
    ServerSGD,
    ServerYogi,
    Settings,
    Sparse,
    TopK,
    nearest,
    resolve_blocks,
    resolve_compression,
    resolve_server_optimizer,
)
from lightning_parablock.settings.elastic import ElasticOptions

WHOLE_NUMBERS = [
    ("local_steps", [0, -1, 1.5, "16", True, None]),
    ("delay_steps", [-1, 0.5, "K", False]),
    ("delay_warmup_rounds", [-1, 0.5, "4", True, None]),
    ("seed", [-1, 1.0, "0"]),
    ("chunk_bytes", [0, 4095, 5000, 4096.0]),
]
SECONDS = [
    (name, [0, -1, float("inf"), float("nan"), "10", None])
    for name in ("exchange_timeout_s", "straggler_timeout_s", "heartbeat_s")
]
CHOICES = [
    ("unmatched", "freez", "freeze"),
    ("block_order", "shufle", "shuffle"),
    ("block_order", "sequentail", "sequential"),
    ("in_flight_value", "locale", "local"),
    ("weighting", "unifrom", "uniform"),
    ("topology", "shard", "sharded"),
    ("topology", "stars", "star"),
    ("block_optimizer_state", "rest", "reset"),
    ("buffers", "averag", "average"),
]
WRONG_BLOCKS = [0, -3, (), ("(",), (1,), "layer", "", True, None, 2.5]


def each_value(table: list[tuple[str, list[Any]]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table for value in values]


@pytest.mark.parametrize(("name", "value"), each_value(WHOLE_NUMBERS) + each_value(SECONDS))
def test_a_wrong_number_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        Settings(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("name", "value", "right"), CHOICES)
def test_a_misspelt_choice_names_the_nearest_right_one(name: str, value: str, right: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}='{value}'.*did you mean '{right}'"):
        Settings(**{name: value})


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"cohort": 3, "clients": 2}, "cohort=3 clients per round, but the run has clients=2"),
    ({"cohort_sampling": "size"}, "cohort_sampling='size' without cohort"),
    ({"visit_more": (("embed", 2.0),)}, "visit_more needs block_order 'random' or 'importance'"),
    ({"visit_more": (("embed", 0.0),), "block_order": "random"}, "the factor of 'embed' must be a finite number > 0"),
    ({"visit_more": (("(", 2.0),), "block_order": "random"}, "visit_more: '\\(' is not a regular expression"),
    ({"block_order": "cyclic", "pending": ("local_steps",)}, "local_steps='auto' needs every client to train the same"),
    ({"block_order": "cyclic", "compression": "auto"}, "compression='auto' needs every client to train the same block"),
    ({"delay_steps": 0, "compression": "auto"}, "with delay_steps=0 nothing is hidden; give compression a name"),
    ({"local_steps": 1, "compression": "auto"}, "the first one warms up: with local_steps=1 there is no other; give"),
    ({"aggregation": "secure", "compression": "auto"}, "compression='auto' with aggregation='secure' is not supported"),
    ({"cohort": 2, "buffers": "average"}, "buffers='average' needs one client per rank in every round"),
    ({"own_local_steps": 0}, "own_local_steps must be a whole number >= 1"),
    ({"own_local_s": -1.0}, "own_local_s must be a finite number of seconds > 0"),
    ({"cohort": 0}, "cohort must be a whole number >= 1"),
    ({"max_rounds": 0}, "max_rounds must be a whole number >= 1"),
    ({"clients": 2.5}, "clients must be a whole number >= 1"),
]


@pytest.mark.parametrize(("given", "message"), CONTRADICTIONS, ids=[message for _, message in CONTRADICTIONS])
def test_what_contradicts_itself_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Settings(**given)


@pytest.mark.parametrize("value", WRONG_BLOCKS, ids=repr)
def test_wrong_blocks_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="blocks"):
        Settings(blocks=value)


@pytest.mark.parametrize("value", [0, [], ["("], [1], "layer", None, 2.5, {"a": 1}], ids=repr)
def test_wrong_blocks_are_refused_as_users_give_them(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="blocks"):
        ParaBlockStrategy(blocks=value)


def test_a_pattern_given_alone_is_shown_as_a_list() -> None:
    with pytest.raises(ConfigurationError, match=re.escape("a list of patterns such as ['encoder']")):
        Settings(blocks="encoder")


def test_a_timeout_shorter_than_two_heartbeats_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"exchange_timeout_s \(1\.9\) must be at least twice heartbeat_s"):
        Settings(exchange_timeout_s=1.9, heartbeat_s=1.0)
    Settings(exchange_timeout_s=2.0, heartbeat_s=1.0)


@pytest.mark.parametrize(("name", "right"), [("nestrov", "nesterov"), ("sdg", "sgd")])
def test_a_misspelt_server_optimizer(name: str, right: str) -> None:
    with pytest.raises(ConfigurationError, match=f"server_optimizer='{name}'.*did you mean '{right}'"):
        resolve_server_optimizer(name)


@pytest.mark.parametrize("make", [ServerSGD, ServerNesterov, ServerAdam, ServerYogi])
@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
def test_a_wrong_server_learning_rate(make: type[ServerSGD | ServerNesterov | ServerAdam], lr: float) -> None:
    with pytest.raises(ConfigurationError, match="server_optimizer lr"):
        make(lr=lr)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_a_wrong_server_momentum(momentum: float) -> None:
    with pytest.raises(ConfigurationError, match="server_optimizer momentum"):
        ServerNesterov(momentum=momentum)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (-0.1, 0.9)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"tau": 0.0}, "tau"),
    ],
)
def test_wrong_adaptive_settings(given: dict[str, Any], says: str) -> None:
    for make in (ServerAdam, ServerYogi):
        with pytest.raises(ConfigurationError, match=f"server_optimizer {says}"):
            make(**given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"decay": "cosin", "decay_rounds": 3}, "decay='cosin' is not known.*did you mean 'cosine'"),
        ({"decay": "linear"}, "decay='linear' needs decay_rounds > warmup_rounds"),
        ({"decay": "linear", "warmup_rounds": 5, "decay_rounds": 5}, r"warmup_rounds \(5\), got 5"),
        ({"decay_rounds": 5}, "mean nothing with decay='constant'"),
        ({"decay_to": 0.5}, "mean nothing with decay='constant'"),
        ({"decay": "cosine", "decay_rounds": 5, "decay_to": 1.5}, r"decay_to must be in \[0, 1\]"),
        ({"warmup_rounds": -1}, "warmup_rounds must be a whole number"),
        ({"warmup_rounds": 1.5}, "warmup_rounds must be a whole number"),
    ],
)
def test_wrong_schedules_of_the_server(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        ServerSGD(**given)


def test_the_servers_learning_rate_warms_up_and_decays() -> None:
    def rates(**given: Any) -> list[float]:
        return [ServerSGD(lr=2.0, **given).lr_of(t) for t in range(9)]

    assert rates() == [2.0] * 9
    assert rates(warmup_rounds=4) == [0.5, 1.0, 1.5, *[2.0] * 6]
    assert rates(decay="linear", decay_rounds=4) == [2.0, 1.5, 1.0, 0.5, *[0.0] * 5]
    both = rates(warmup_rounds=2, decay="linear", decay_rounds=6, decay_to=0.5)
    assert both == [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 1.0, 1.0]
    cosine = rates(decay="cosine", decay_rounds=4)
    assert cosine[0] == 2.0 and cosine[2] == pytest.approx(1.0) and cosine[4:] == [0.0] * 5
    assert cosine[1] == pytest.approx(1 + math.cos(math.pi / 4))


def test_server_optimizers_by_name_and_as_objects() -> None:
    assert resolve_server_optimizer("adam") == ServerAdam(lr=0.01, betas=(0.9, 0.99), tau=1e-3)
    assert resolve_server_optimizer("yogi") == ServerYogi()
    assert ServerYogi() != ServerAdam()
    assert resolve_server_optimizer("sgd") == ServerSGD(lr=1.0)
    assert resolve_server_optimizer("nesterov") == ServerNesterov(lr=0.7, momentum=0.9)
    own = ServerNesterov(lr=0.5, momentum=0.8)
    assert resolve_server_optimizer(own) is own


@pytest.mark.parametrize(
    ("name", "right"),
    [("non", "none"), ("bf61", "bf16"), ("int", "int8"), ("init4", "int4"), ("top-k", "topk"), ("spares", "sparse")],
)
def test_a_misspelt_compression(name: str, right: str) -> None:
    with pytest.raises(ConfigurationError, match=f"compression='{name}'.*did you mean '{right}'"):
        resolve_compression(name)


@pytest.mark.parametrize("name", ["fp8", "powersgd", "", None, 8])
def test_compressions_that_are_not_built(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"compression={name!r} is not known; choose from 'none', 'bf16'"):
        ParaBlockStrategy(compression=name)


@pytest.mark.parametrize("make", [Int8, Int4])
@pytest.mark.parametrize("group", [0, -64, 1, 2, 3, 12, 100, 1000, 2048, 64.0, "64", True, None])
def test_a_wrong_group(make: type[Int8 | Int4], group: Any) -> None:
    with pytest.raises(ConfigurationError, match="compression group must"):
        make(group=group)


@pytest.mark.parametrize(("group", "near"), [(100, 64), (12, 8), (1000, 512), (4096, 1024)])
def test_a_wrong_group_is_told_the_next_one(group: int, near: int) -> None:
    with pytest.raises(ConfigurationError, match=f"must divide 1024, got {group}; try {near}$"):
        Int8(group)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, 64, float("nan"), float("inf")])
def test_a_wrong_share_to_keep(keep: float) -> None:
    with pytest.raises(ConfigurationError, match=r"compression keep must be in \(0, 1\], got"):
        TopK(keep)


@pytest.mark.parametrize("group", [0, 8, 31, 128, 1024, 32.0, "32", True, None])
def test_a_wrong_group_of_which_one_is_sent(group: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"compression group.* must be (a whole number >= 16|one of 16, 32, 64)"
    ):
        Sparse(group)


@pytest.mark.parametrize("decay", [-0.1, 1.01, float("nan"), float("inf")])
def test_a_wrong_decay(decay: float) -> None:
    with pytest.raises(ConfigurationError, match=r"compression decay must be in \[0, 1\], got"):
        Sparse(decay=decay)


def test_compressions_by_name_and_as_objects() -> None:
    objects = [NoCompression(), BF16(), Int8(group=256), Int4(group=64), TopK(keep=1 / 16), Sparse(group=32, decay=1.0)]
    objects.append(LowRank(rank=8, decay=1.0))
    assert [resolve_compression(name) for name in COMPRESSIONS] == objects
    assert [compression.is_lossy for compression in objects] == [False, *[True] * 6]
    assert list(COMPRESSIONS) == ["none", "bf16", "int8", "int4", "topk", "sparse", "low_rank"]
    assert [one.feedback_decay for one in (*objects, Sparse(decay=0.9))] == [1] * 7 + [0.9]
    own = Int4(group=4)
    assert ParaBlockStrategy(compression=own).settings.compression is own
    assert ParaBlockStrategy(compression="int8").settings.compression == Int8()
    assert ParaBlockStrategy().settings.compression == Settings().compression == NoCompression()
    assert [TopK(1).keep, Int8(1024).group] == [1, 1024]


def test_aggregations_by_name_and_as_objects() -> None:
    assert ParaBlockStrategy(aggregation="mean").settings.aggregation == Settings().aggregation == MeanAggregation()
    with pytest.raises(ConfigurationError, match="aggregation='median' is not known; choose from 'mean', 'secure'"):
        ParaBlockStrategy(aggregation="median")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("delay_steps", "expected"), [(0, (0, 0)), (3, (0, 3)), (4, (1, 0)), (6, (1, 2)), (8, (2, 0)), (13, (3, 1))]
)
def test_the_delay_in_rounds_and_steps(delay_steps: int, expected: tuple[int, int]) -> None:
    delay = Settings(local_steps=4, delay_steps=delay_steps, delay_warmup_rounds=5).delay
    assert (delay.rounds, delay.rest_steps, delay.warmup_rounds) == (*expected, 5)


def test_the_strategy_resolves_its_options() -> None:
    resolved = ParaBlockStrategy(local_steps=5, blocks=["a", "b"], server_optimizer="nesterov").settings
    assert (resolved.local_steps, resolved.delay_steps, resolved.blocks) == (5, 5, ("a", "b"))
    assert resolved.server_optimizer == ServerNesterov()
    assert ParaBlockStrategy(local_steps=5, delay_steps=0).settings.delay_steps == 0
    assert resolve_blocks("layers") == "layers"
    assert resolve_blocks(3) == 3


def test_the_fingerprint_tells_every_setting() -> None:
    one, other = Settings(), Settings(server_optimizer=ServerSGD(lr=0.5))
    differing = {name for name in one.fingerprint() if one.fingerprint()[name] != other.fingerprint()[name]}
    assert differing == {"server_optimizer"}
    assert Settings(compression=Int8()).fingerprint() != Settings(compression=Int8(64)).fingerprint()
    elastic = {option.name for option in options_of(ElasticOptions)}
    assert set(one.fingerprint()) == set(Settings.__dataclass_fields__) - {"pending", *OWN_SETTINGS, *elastic}


@pytest.mark.parametrize(("delay_steps", "pending", "agreed"), [(None, ["delay_steps"], 9), (3, [], 3), (300, [], 300)])
def test_what_is_pending_until_the_clients_agree(delay_steps: int | None, pending: list[str], agreed: int) -> None:
    settings = ParaBlockStrategy(local_steps="auto", delay_steps=delay_steps).settings
    fingerprint = settings.fingerprint()
    assert {name for name, value in fingerprint.items() if value == "'auto'"} == {"local_steps", *pending}
    settled = settings.agreed(local_steps=9)
    assert settled == ParaBlockStrategy(local_steps=9, delay_steps=delay_steps).settings
    assert (settled.local_steps, settled.delay_steps) == (9, agreed)
    assert "'auto'" not in settled.fingerprint().values()


def test_the_codec_is_pending_alone_or_with_the_local_steps() -> None:
    alone = ParaBlockStrategy(local_steps=5, compression="auto").settings
    assert alone.pending == ("compression",)
    assert {name for name, value in alone.fingerprint().items() if value == "'auto'"} == {"compression"}
    assert alone.agreed(local_steps=9) == alone
    given = ParaBlockStrategy(local_steps=5, compression=Int8()).settings
    assert alone.agreed(local_steps=9, compression=Int8()) == given
    both = ParaBlockStrategy(local_steps="auto", compression="auto").settings
    assert both.agreed(compression=Int8()) == ParaBlockStrategy(local_steps="auto", compression=Int8()).settings
    assert both.agreed(local_steps=9) == ParaBlockStrategy(local_steps=9, compression="auto").settings
    assert replace(both, seed=3).pending == both.pending


def test_nothing_to_hide_behind_where_every_exchange_is_waited_for() -> None:
    with pytest.raises(ConfigurationError, match="with delay_steps=0 nothing is hidden; give local_steps a number"):
        ParaBlockStrategy(local_steps="auto", delay_steps=0)


def test_nearest_names_nothing_where_nothing_is_near() -> None:
    assert nearest("xyz", ("star", "sharded")) == "choose from 'star', 'sharded'"
