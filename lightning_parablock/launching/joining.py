"""How this process joins the run: it meets the other ranks, takes its number and opens the default process group."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_utilities.core.rank_zero import rank_zero_only
from torch.distributed import DistError
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore, Store

from lightning_parablock.errors import ConfigurationError, PeerLostError, PeerTimeoutError
from lightning_parablock.launching.site_environment import SiteEnvironment
from lightning_parablock.lightning_private.processes import open_default_group
from lightning_parablock.meeting.default_group import gather_in_group
from lightning_parablock.meeting.devices import (
    OWN_OF_EACH,
    InUse,
    listeners_in_use,
    on_listeners,
    refuse_other_ports,
    use_listeners,
)
from lightning_parablock.meeting.group_opening import open_together
from lightning_parablock.meeting.introductions import NO_NUMBER, Introduction, Meeting, in_order, this_system
from lightning_parablock.meeting.meeting import MeetingTable
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.meeting.rendezvous import (
    Address,
    connect_store,
    host_store,
    launcher_hosts_store,
    one_line,
    open_store,
)
from lightning_parablock.meeting.ways import Ways
from lightning_parablock.settings.ports import PortRange
from lightning_parablock.system.limited_wait import LimitedWait, run_reported

_JOB_NAMES = ("TORCHELASTIC_RUN_ID", "OMPI_MCA_ess_base_jobid", "PMI_JOBID")
"""Variables in which launchers name their job: the same in all of its processes, and other in those of another job."""

_stores: list[Store] = []
"""Kept for as long as the process lives: this process may host them. One for every default group it has opened."""


@dataclass(frozen=True)
class _Opened:
    """The default group that this process has opened last.

    Attributes:
        group: The group; another one may be open meanwhile.
        links: The private links that it uses; None for any network.
        in_use: Its listeners, which the groups of later fits use, too.
    """

    group: Any
    links: PrivateLinks | None
    in_use: InUse


_opened: _Opened | None = None


def join_run(
    environment: ClusterEnvironment,
    site: str | None,
    limit_s: float,
    backend: str,
    *,
    one_host: bool,
    ports: PortRange | None,
    links: PrivateLinks | None = None,
    **group: Any,
) -> Meeting:
    """Meet the other ranks, take the number that the meeting gives and open the default process group; collective.

    Args:
        environment: Knows where the ranks meet, how many they are and which number the launcher gave this one.
        site: Name of this process' site, if it has one.
        limit_s: Seconds until all must have met.
        backend: Backend of the default process group.
        one_host: Whether all ranks run on this machine.
        ports: On which this rank accepts connections; None for any.
        links: Addresses of the sites of a federation, and no others are used; None for any.
        **group: Further arguments of ``init_process_group``, ``timeout`` and ``device_id`` among them.

    Raises:
        ConfigurationError: the address, the names or the numbers cannot be used; or a default group is open already,
            of another size, backend, links or ports.
        PeerLostError: another rank ended, or could not connect.
        PeerTimeoutError: not all ranks have come within the limit.
    """
    global _opened
    own = _introduction(environment, site)
    if links is not None:
        links.check_here()
    if dist.is_initialized():
        _refuse_other_group(own.n_ranks, backend)
        # An elastic run of this process may have had listeners of its own since then.
        opened = _opened_before()
        use_listeners(OWN_OF_EACH if opened is None else opened.in_use)
        if links is not None:
            refuse_open_group(links)
        if ports is not None:
            refuse_other_ports(ports)
        meeting = _meet_again(own, limit_s)
        _adopt_number(environment, meeting.rank)
        return meeting
    wait = LimitedWait(limit_s)
    address = Address(environment.main_address, environment.main_port)
    if links is not None:
        links.check_meeting(address.host, "rendezvous" if isinstance(environment, SiteEnvironment) else "MASTER_ADDR")
        if launcher_hosts_store():
            links.warn_of_open_store(address.port)
    store, meeting = _meet(address, own, wait, is_private=links is not None)
    _adopt_number(environment, meeting.rank)
    Ways(address.host, one_host, ports, links).open(store, meeting, wait)
    of_group = connect_store(address, wait)
    of_group.set_timeout(group["timeout"] or default_pg_timeout)
    group["store"] = PrefixStore(f"parablock/group/{meeting.run_id}", of_group)

    def open_group() -> None:
        # The current CUDA device is a thread's own.
        device = group["device_id"]
        with on_listeners(), contextlib.nullcontext() if device is None else torch.cuda.device(device):
            open_default_group(environment, backend, rank=meeting.rank, **group)

    open_together(open_group, meeting, store, wait.remaining_s)
    _opened = _Opened(dist.group.WORLD, links, listeners_in_use())
    return meeting


def refuse_open_group(links: PrivateLinks) -> None:
    """Refuse a default group that is open, unless an earlier part of the run has opened it over these links.

    Raises:
        ConfigurationError: the program has opened it, or a strategy without this federation; its connections may be on
            any network.
    """
    opened = _opened_before()
    if dist.is_initialized() and (opened is None or opened.links != links):
        raise ConfigurationError(
            f"the process group was opened before, and not over the private links of {links.federation}: by the "
            "program itself, or by a strategy without this federation; what is trained now would leave the machine "
            "unprotected. Give every strategy of the program the same federation, and leave init_process_group to them"
        )


def _refuse_other_group(n_ranks: int, backend: str) -> None:
    opened, config = dist.get_world_size(), str(dist.get_backend_config())
    if opened != n_ranks or backend not in config:
        raise ConfigurationError(
            f"the process group that is open already has {opened} rank(s) and the backend {config}, and this strategy "
            f"asks for {n_ranks} and {backend}: give every strategy of the program the same devices, num_nodes "
            "and process_group_backend"
        )


def _opened_before() -> _Opened | None:
    """The default group that is open, if it was opened here."""
    return _opened if _opened is not None and _opened.group is dist.group.WORLD else None


def _meet(address: Address, own: Introduction, wait: LimitedWait, *, is_private: bool = False) -> tuple[Store, Meeting]:
    """The store that all ranks share, and who they are. The process that hosts the store may be started again."""
    while True:
        store, hosts = _open_store(address, own, wait, is_private=is_private)
        table = MeetingTable(PrefixStore(_attempt(), store), own, address.describe(), hosts_store=hosts)
        try:
            meeting = table.meet(wait)
        except DistError as error:
            if hosts or wait.is_over:
                raise PeerLostError(f"the meeting at {address} broke off: {one_line(error)}") from error
            continue
        _stores.append(store)
        return store, meeting


def _open_store(address: Address, own: Introduction, wait: LimitedWait, *, is_private: bool) -> tuple[Store, bool]:
    if own.rank == NO_NUMBER:
        return open_store(address, wait, is_private=is_private)
    if own.rank == 0 and not launcher_hosts_store():
        return host_store(address, is_private=is_private), True
    return connect_store(address, wait), False


def _adopt_number(environment: ClusterEnvironment, rank: int) -> None:
    """Let the environment answer the number of the meeting, not the launcher's, which sites' names may have changed."""
    # On the instance: most environments read it off variables that other programs of this process rely on, too.
    setattr(environment, "global_rank", lambda: rank)  # noqa: B010
    setattr(rank_zero_only, "rank", rank)  # noqa: B010


def _introduction(environment: ClusterEnvironment, site: str | None) -> Introduction:
    rank = NO_NUMBER if isinstance(environment, SiteEnvironment) else environment.global_rank()
    here = (socket.gethostname(), os.getpid(), job_of(environment), this_system())
    return Introduction(rank, environment.world_size(), site, *here)


def job_of(environment: ClusterEnvironment) -> str:
    """The job of the launcher that started this run's processes; sites may each be in a job of their own."""
    if isinstance(environment, SLURMEnvironment):
        return os.environ.get("SLURM_JOB_ID", "")
    if not environment.creates_processes_externally or isinstance(environment, SiteEnvironment):
        return ""
    return next((os.environ[name] for name in _JOB_NAMES if os.environ.get(name, "none") != "none"), "")


def _meet_again(own: Introduction, limit_s: float) -> Meeting:
    """The ranks of a default group that is open already, by an earlier fit or by the program itself."""
    ranks: list[Introduction] = []
    own = replace(own, rank=dist.get_rank(), n_ranks=dist.get_world_size())
    others = "the other processes of the run, which this one has met before"
    try:
        run_reported(lambda: ranks.extend(gather_in_group(own)), LimitedWait(limit_s), lambda: others)
    except (RuntimeError, TimeoutError) as error:
        lost = PeerTimeoutError if isinstance(error, TimeoutError) else PeerLostError
        raise lost(
            f"{own.describe()} could not meet {others}, again ({one_line(error)}): one of them ended between two parts "
            "of the run; see what each of them reported last, and start the run again"
        ) from error
    if in_order(ranks) != tuple(ranks):
        raise ConfigurationError(
            "the process group was opened before the sites had names, and in another order than that of their names; "
            "give the first strategy of the program the name of the site, too"
        )
    return Meeting(tuple(ranks), own.rank, "")


def _attempt() -> str:
    """Where in the store this meeting is held: a launcher's restarts and later groups have meetings of their own."""
    return f"parablock/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{len(_stores)}"
