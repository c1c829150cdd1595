"""A process that joins a run again: the process group that is open already, and the private links of a federation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.distributed import HashStore
from torch.utils.data import DataLoader

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.launching import joining
from lightning_parablock.launching.joining import join_run
from lightning_parablock.meeting import devices
from lightning_parablock.meeting.devices import Listener
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.settings.ports import PortRange
from lightning_parablock.strategy import ranks
from tests.support.lightning_run import Steps, TaskModule, trainer_for
from tests.tasks import adamw_default, transformer_task

LINKS = PrivateLinks("version 2 of federation clinic", "a", {"a": "10.91.0.1"}, {}, None, (), "SHA-256 22")


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One of this process alone, which the program has opened; and the links of the federation are there."""
    monkeypatch.setattr(PrivateLinks, "check_here", lambda self: None)
    monkeypatch.setattr(joining, "_opened", None)
    monkeypatch.setattr(devices, "_listeners", devices._listeners)  # what a test does to them ends with it
    monkeypatch.setattr(devices, "_peers", devices._peers)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def join(links: PrivateLinks | None, ports: PortRange | None = None) -> None:
    meeting = join_run(LightningEnvironment(), "a", 60.0, "gloo", one_host=True, ports=ports, links=links)
    assert meeting.rank == 0 and meeting.site_names == ("a",)


def opened_here(links: PrivateLinks | None, *ports: int) -> None:
    listeners = tuple(Listener(None, "127.0.0.1", port) for port in ports)
    joining._opened = joining._Opened(dist.group.WORLD, links, (listeners, None))


def test_a_group_of_another_size_or_backend_is_not_used(group: None) -> None:
    environment = LightningEnvironment()
    with pytest.raises(ConfigurationError, match=r"has 1 rank.* and the backend cpu:gloo.* asks for 1 and nccl:"):
        join_run(environment, "a", 60.0, "nccl", one_host=True, ports=None)
    environment.set_world_size(2)
    with pytest.raises(ConfigurationError, match=r"has 1 rank.* asks for 2 and gloo: give every strategy"):
        join_run(environment, "a", 60.0, "gloo", one_host=True, ports=None)


def test_a_group_that_was_opened_outside_the_private_links_is_not_used_with_a_federation(group: None) -> None:
    join(None)
    with pytest.raises(ConfigurationError, match=r"not over the private links of version 2 of federation clinic: by"):
        join(LINKS)


def test_one_that_was_opened_over_them_is(group: None) -> None:
    opened_here(LINKS)
    join(LINKS)
    join(replace(LINKS, files=("keys/clinic-inner.conf",)))  # the same folder, spelled otherwise
    with pytest.raises(ConfigurationError, match="version 3 of federation clinic"):
        join(replace(LINKS, federation="version 3 of federation clinic", alias="SHA-256 33"))
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    with pytest.raises(ConfigurationError, match="opened before"):
        join(LINKS)


def test_ports_that_came_too_late_are_not_ignored(group: None) -> None:
    with pytest.raises(ConfigurationError, match=r"^ports='5-7', but .* listens wherever the program has opened it"):
        join(None, PortRange(5, 7))
    opened_here(None, 6)
    join(None, PortRange(5, 7))
    with pytest.raises(ConfigurationError, match=r"^ports='7', but .* listens on port 6: give every strategy"):
        join(None, PortRange(7, 7))


def test_groups_of_later_fits_are_opened_where_the_default_group_is(group: None) -> None:
    opened_here(LINKS, 6)
    devices.use_listeners(((Listener(None, "192.0.2.1", 7),), None))  # of an elastic run of this process
    join(LINKS)
    assert [one.port for one in devices.listeners_in_use()[0]] == [6]
    joining._opened = None
    join(None)
    assert devices.listeners_in_use() == devices.OWN_OF_EACH, "the program has opened the group"


@pytest.mark.parametrize("options", [{}, {"lighthouse": "10.91.0.1:29510", "min_clients": 2}])
def test_a_process_alone_does_not_take_part_in_a_group_outside_the_links(
    group: None, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "private_links", lambda *_, **__: LINKS)
    strategy = ParaBlockStrategy(site="a", **options)
    with pytest.raises(ConfigurationError, match="not over the private links"):
        trainer_for(strategy).validate(TaskModule(transformer_task(), adamw_default), DataLoader(Steps(1, 0)))
