"""The ranks under a strategy: how they start, meet, watch each other and part, without a word on rounds."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import reset_seed
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor
from torch.distributed.constants import default_pg_timeout as DEFAULT_TIMEOUT
from typing_extensions import override

from lightning_parablock.errors import ConfigurationError, PeerError
from lightning_parablock.federation.cohorts import hosted_clients
from lightning_parablock.launching.agreement import refuse_differences
from lightning_parablock.launching.joining import join_run
from lightning_parablock.launching.launched import adopt_mpi, launched_devices, refuse_other_sizes
from lightning_parablock.launching.launcher import FunctionLauncher, ProcessLauncher, end_others, while_others_live
from lightning_parablock.launching.site_environment import SiteEnvironment, site_environment
from lightning_parablock.lightning_private.processes import LaunchingStrategy, default_backend, reduce_over
from lightning_parablock.meeting.devices import refuse_unattainable
from lightning_parablock.meeting.introductions import Meeting, check_site_name
from lightning_parablock.membership.descriptors import raise_limit
from lightning_parablock.settings import Settings
from lightning_parablock.transport.link_probe import LinkSample, probe_links
from lightning_parablock.transport.opening import Federation, open_federation

log = logging.getLogger(__name__)
T = TypeVar("T")
StartMethod = Literal["popen", "spawn", "fork"]
"""Not forkserver: Lightning's launcher would hand the same memory to all ranks, which train each other's weights."""


class WatchedStrategy(LaunchingStrategy):
    """Starts one process a client, and runs Lightning's collectives so that none of them outlives a lost client.

    Args:
        process_group_backend: "gloo", "nccl", or None for the device's own.
        timeout: Limit of the default process group.
        site: Name of this process' site, or None; names give the ranks their numbers.
        rendezvous: ``host:port`` where sites meet that no launcher has started, or None.
        meeting_timeout_s: Seconds until all ranks must have met.
        start_method: How processes are started where no launcher did it.
        **lightning: What Lightning's ParallelStrategy takes.
    """

    is_distributed = True
    """Without it Lightning ignores ``sync_dist=True``."""

    def __init__(
        self,
        *,
        process_group_backend: str | None,
        timeout: timedelta | None,
        site: str | None,
        rendezvous: str | None,
        meeting_timeout_s: float,
        start_method: StartMethod,
        **lightning: Any,
    ) -> None:
        if start_method not in get_args(StartMethod):
            known = ", ".join(map(repr, get_args(StartMethod)))
            raise ConfigurationError(f"start_method must be one of {known}, got {start_method!r}")
        if site is not None:
            check_site_name(site)
        if not 0 < meeting_timeout_s < float("inf"):
            raise ConfigurationError(f"meeting_timeout_s must be a number of seconds > 0, got {meeting_timeout_s!r}")
        adopt_mpi()
        launched_devices()  # refuses what Lightning would refuse with other advice
        if rendezvous is not None:
            if lightning["cluster_environment"] is not None:
                raise ConfigurationError("rendezvous and cluster_environment both say how the ranks meet; keep one")
            lightning["cluster_environment"] = site_environment(rendezvous, site)
        super().__init__(**lightning)
        self._num_nodes = 1
        self._process_group_backend = process_group_backend
        self._timeout = timeout
        self._site = site
        self._site_names: tuple[str, ...] = ()
        self._hosts: tuple[str, ...] | None = None
        self._meeting_timeout_s = meeting_timeout_s
        self._start_method: StartMethod = start_method
        self._federation: Federation | None = None
        self._failed = False

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    @override
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        if self.local_rank >= self.num_processes:
            raise ConfigurationError(
                f"this is process {self.local_rank} of its machine, numbered from 0, but the Trainer has "
                f"devices={self.num_processes}; set devices to the number of processes on each machine"
            )
        return self.parallel_devices[self.local_rank]

    @property
    def num_nodes(self) -> int:
        """Number of nodes; set by the Trainer."""
        return self._num_nodes

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    @property
    def num_processes(self) -> int:
        """Number of processes on this node."""
        return len(self.parallel_devices) if self.parallel_devices is not None else 0

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.num_nodes * self.num_processes, "rank": self.global_rank}

    @property
    def process_group_backend(self) -> str:
        """ "gloo" or "nccl"."""
        return self._process_group_backend or default_backend(self.root_device)

    @property
    def site_names(self) -> tuple[str, ...]:
        """For each rank the name of its site, once the ranks have met; empty where sites have no names."""
        return self._site_names

    def describe(self, rank: int) -> str:
        """A rank in words, for messages."""
        return self._federation.membership.describe(rank) if self._federation is not None else f"rank {rank}"

    # --- the start ----------------------------------------------------------------------------------------------------

    @override
    def make_launcher(self) -> ProcessLauncher | FunctionLauncher:
        assert self.cluster_environment is not None
        start_method = self._start_method
        if isinstance(self.cluster_environment, SiteEnvironment):
            self.cluster_environment.validate_settings(self.num_processes, self.num_nodes)
        else:
            refuse_other_sizes(self.num_processes, self.num_nodes)
        if (
            self._site is not None
            and self.num_processes > 1
            and not self.cluster_environment.creates_processes_externally
        ):
            raise ConfigurationError(
                f"a site is one process, and devices={self.num_processes} would start {self.num_processes} processes "
                f"under the name {self._site!r}: use devices=1 and num_nodes=NUMBER OF SITES, and start one process "
                "per site, each with its own name"
            )
        if start_method == "popen":
            return ProcessLauncher(self.cluster_environment, self.num_processes, self.num_nodes)
        return FunctionLauncher(self, start_method=start_method)

    @override
    def model_to_device(self) -> None:
        assert self.model is not None
        self.model.to(self.root_device)

    def _open_ranks(self, settings: Settings) -> None:
        """Join the default process group and begin to watch the other ranks; collective."""
        reset_seed()
        self._federation = None
        if self.world_size > 1:
            raise_limit()
            self._join(settings)
        else:
            self._site_names = () if self._site is None else (self._site,)
        self._failed = False
        n_clients = settings.clients or self.world_size
        if n_clients < self.world_size:
            raise ConfigurationError(
                f"clients={n_clients}, but the run has {self.world_size} ranks, each of which hosts at least one "
                "client; start fewer ranks, or raise clients"
            )
        unknown = {client for round_ in settings.availability for client in round_ if client >= n_clients}
        if unknown:
            raise ConfigurationError(
                f"availability names client {min(unknown)}, but the run has {n_clients} clients, numbered from 0"
            )
        if settings.cohort is not None and settings.cohort > n_clients:
            raise ConfigurationError(f"cohort={settings.cohort} clients a round, but the run has {n_clients}")
        self._federation = open_federation(
            settings, hosted_clients(n_clients, self.world_size), self.site_names, self._hosts
        )

    def _set_world_ranks(self) -> None:
        if self.cluster_environment is not None:
            self.cluster_environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)
            self.cluster_environment.set_world_size(self.num_nodes * self.num_processes)
        # Lightning's rank-zero helpers read the rank off their own function object.
        setattr(rank_zero_only, "rank", self.global_rank)  # noqa: B010

    def _join(self, settings: Settings) -> None:
        """Meet the others, take the number that the meeting gave this rank, and open the default group."""
        assert self.cluster_environment is not None
        if settings.ports is not None:  # before the others are kept waiting
            refuse_unattainable(settings.ports)
        met: list[Meeting] = []
        join = partial(
            join_run,
            self.cluster_environment,
            self._site,
            self._meeting_timeout_s,
            self.process_group_backend,
            one_host=self.world_size == self.num_processes,
            ports=settings.ports,
            timeout=self._timeout,
            device_id=self.root_device if self.root_device.type == "cuda" else None,
        )
        while_others_live(lambda: met.append(join()))
        self._site_names, self._hosts = met[0].site_names, tuple(one.host for one in met[0].ranks)

    # --- collectives of Lightning, none of which outlives a lost peer -------------------------------------------------

    @override
    def barrier(self, name: str | None = None) -> None:
        if self.world_size > 1 and dist.is_initialized() and not self._failed:
            devices = [self.root_device.index] if self.process_group_backend == "nccl" else None
            self._guard(f"barrier {name or ''}".strip(), lambda: dist.barrier(device_ids=devices))

    @override
    def broadcast(self, obj: T, src: int = 0) -> T:
        if self.world_size == 1 or not dist.is_initialized() or self._failed:
            return obj
        objects = [obj]
        self._guard("broadcast", lambda: dist.broadcast_object_list(objects, src), f"from rank {src}")
        return objects[0]

    @override
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if not isinstance(tensor, Tensor) or self.world_size == 1 or self._failed:
            return tensor
        if not tensor.is_floating_point() and reduce_op in ("mean", "avg"):
            # Lightning divides summed metrics by the mean of the clients' sample counts, which is no whole number.
            tensor = tensor.float()

        def reduce() -> Tensor:
            return reduce_over(tensor, group, reduce_op)

        if not _is_default(group):
            return reduce()
        return self._guard("reduce", reduce, f"({reduce_op}) of {_kind_of(tensor)}")

    @override
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        gather = super().all_gather
        if sync_grads:  # autograd belongs to the thread that calls
            self._guard("all_gather", lambda: None, f"with gradients of {_kind_of(tensor)}")
            return gather(tensor, group, sync_grads)
        if not _is_default(group):
            return gather(tensor, group)
        return self._guard("all_gather", lambda: gather(tensor, group), f"of {_kind_of(tensor)}")

    def _guard(self, what: str, collective: Callable[[], T], detail: str = "") -> T:
        """Run a collective of the default group, which all ranks enter together or none does.

        Args:
            what: Its name, for messages.
            collective: The operation.
            detail: What else must be the same on all ranks, in words.

        Raises:
            PeerError: a rank was lost, was silent or late for too long, or is in another collective.
        """
        watch = self._federation.watch if self._federation is not None else None
        if watch is None:
            return collective()
        return watch.guard(what, lambda: self._on_own_device(collective), limit_s=self._limit_s, detail=detail)

    def _on_own_device(self, collective: Callable[[], T]) -> T:
        # The current CUDA device is a thread's own, and the guard runs the collective on a thread of its own.
        if self.root_device.type != "cuda":
            return collective()
        with torch.cuda.device(self.root_device):
            return collective()

    def gather_objects(self, value: T) -> list[T]:
        """The value of every rank, in rank order; collective."""
        gathered: list[Any] = [None] * self.world_size
        if self.world_size == 1:
            return [value]
        self._guard("gather", lambda: dist.all_gather_object(gathered, value), f"in {_asker()}")
        return gathered

    def broadcast_tensors(self, tensors: Sequence[Tensor], what: str) -> None:
        """Overwrite tensors with those of rank 0; collective.

        Args:
            tensors: Of the same shapes and types on every rank.
            what: Names them in messages.
        """

        def broadcast() -> None:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

        self._guard(f"broadcast of {what}", broadcast)

    def time_links(self, settings: Settings) -> LinkSample | None:
        """A timed exchange in the pattern of the run's topology, None where there is one rank; collective."""
        if self.world_size == 1:
            return None
        backend = self.process_group_backend
        probe = partial(
            probe_links,
            settings.topology,
            backend=backend,
            device=self.root_device if backend == "nccl" else torch.device("cpu"),
            chunk_bytes=settings.chunk_bytes,
            timeout_s=settings.exchange_timeout_s,
        )
        return self._guard("probe of the links", probe)

    def _refuse_differences(self, facts: Mapping[str, str]) -> None:
        """Raise the same ConfigurationError on every rank where these facts are not the same on all; collective."""
        assert self._federation is not None
        members = self._federation.membership
        refuse_differences(self.gather_objects(dict(facts)), [members.describe(r) for r in range(members.n_ranks)])

    # --- the end ------------------------------------------------------------------------------------------------------

    @override
    def on_exception(self, exception: BaseException) -> None:
        # Never waits for peers: they may be what failed.
        if self._failed:
            return
        self._failed = True
        if isinstance(exception, SystemExit) and not exception.code and self.world_size > 1:
            log.error(
                "parablock: sys.exit(%s) in the middle of a run ends it for all clients, so the exit code is 1; to end "
                "training early set trainer.should_stop on all clients at the same batch",
                "" if exception.code is None else exception.code,
            )
            exception.code = 1
        watch = self._federation.watch if self._federation is not None else None
        if watch is not None:
            watch.abort(f"{type(exception).__name__}: {exception}")
        end_others()

    def part(self) -> None:
        """The last act of a run: say good-bye and wait until all ranks have done so, or one has failed.

        Raises:
            PeerError: another rank has failed since training ended, in which case this one's exit code must tell so.
        """
        federation, self._federation = self._federation, None
        if federation is None or federation.watch is None or self._failed:
            return
        try:
            late = federation.watch.close(self._limit_s)
        except PeerError as error:
            raise type(error)(
                f"this client has finished, but not all have: {error}; what this client has saved is whole"
            ) from error
        if late:
            who = ", ".join(federation.membership.describe(rank) for rank in late)
            log.warning("parablock: left without a good-bye from %s after %g s", who, self._limit_s)

    @property
    def _limit_s(self) -> float:
        return (self._timeout or DEFAULT_TIMEOUT).total_seconds()

    @override
    def teardown(self) -> None:
        if self.cluster_environment is not None:
            super().teardown()


def _is_default(group: Any) -> bool:
    """Whether a collective concerns all ranks; what runs in a group of the user's own is the user's affair."""
    return group is None or group is dist.group.WORLD


def _kind_of(tensor: object) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__


def _asker() -> str:
    """The function that gathers: values for different purposes must not meet, and all of them look alike."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame.f_code.co_name == "gather_objects" and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_qualname.replace(".<locals>", "")
