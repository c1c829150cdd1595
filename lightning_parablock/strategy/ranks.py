"""The ranks of a strategy: how their processes start, meet and part, and which clients each hosts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from lightning.fabric.utilities.seed import reset_seed
from lightning_utilities.core.rank_zero import rank_zero_only
from typing_extensions import override

from lightning_parablock.elastic.view import Admission
from lightning_parablock.errors import ConfigurationError, PeerError
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.launching.elastic_environment import ElasticEnvironment
from lightning_parablock.launching.joining import join_run, refuse_open_group
from lightning_parablock.launching.launched import adopt_mpi, launched_devices, refuse_other_sizes
from lightning_parablock.launching.launcher import FunctionLauncher, ProcessLauncher, end_others, while_others_live
from lightning_parablock.launching.site_environment import SiteEnvironment, site_environment
from lightning_parablock.meeting.devices import refuse_unattainable
from lightning_parablock.meeting.introductions import Meeting
from lightning_parablock.membership.descriptors import raise_limit
from lightning_parablock.seeds import LocalSeed
from lightning_parablock.settings import Settings
from lightning_parablock.strategy.collectives import GuardedCollectives
from lightning_parablock.strategy.hosting import Hosting
from lightning_parablock.strategy.options import ProcessOptions, StartMethod
from lightning_parablock.strategy.private import member_of, private_links, refuse_shared_links
from lightning_parablock.strategy.refusals import refuse_numbers
from lightning_parablock.strategy.run_settings import RunSettings
from lightning_parablock.transport.opening import open_federation

log = logging.getLogger(__name__)


class RankStrategy(GuardedCollectives):
    """Starts one process per client, lets the processes meet, and lets them part in good order.

    Args:
        settings: The settings as the user gave them.
        seed_is_given: Whether their seed is the user's, and not the one of ``seed_everything``.
        processes: How the processes start and meet.
        **lightning: The arguments of Lightning's ParallelStrategy.
    """

    def __init__(self, settings: Settings, processes: ProcessOptions, *, seed_is_given: bool, **lightning: Any) -> None:
        adopt_mpi()
        launched_devices()  # refuses what Lightning would refuse with other advice
        if processes.rendezvous is not None:
            if lightning["cluster_environment"] is not None:
                raise ConfigurationError("rendezvous and cluster_environment both say how the ranks meet; keep one")
            lightning["cluster_environment"] = site_environment(processes.rendezvous, processes.site)
        super().__init__(process_group_backend=processes.process_group_backend, timeout=processes.timeout, **lightning)
        self._settings = RunSettings(settings, seed_is_given=seed_is_given)
        self._num_nodes = 1
        self._site = processes.site
        self._member = member_of(settings, processes.site)
        self._links = private_links(settings, self._member, rendezvous=processes.rendezvous)
        self.local_seed = LocalSeed()
        self._site_names: tuple[str, ...] = ()
        self._hosts: tuple[str, ...] = ()
        self._meeting_timeout_s = processes.meeting_timeout_s
        self._start_method: StartMethod = processes.start_method

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings of the run, as far as they are known; a record never changes."""
        return self._settings.newest

    def settle(self, settings: Settings) -> None:
        """Take over a record in which more is known than before."""
        self._settings.settle(settings)

    @property
    def hosting(self) -> Hosting:
        """Which rank hosts which clients."""
        return Hosting.of(self.settings, self.world_size)

    @property
    def n_clients(self) -> int:
        """Number of clients in all."""
        return self.hosting.n_clients

    @property
    def hosted_clients(self) -> tuple[int, ...]:
        """Numbers of the clients that this rank hosts."""
        return self.hosting.by_rank[self.global_rank]

    @property
    def takes_turns(self) -> bool:
        """Whether the clients are counted apart from the ranks, or do not all train in every round."""
        return self.settings.takes_turns

    @property
    def round_steps(self) -> int:
        """Optimizer steps per round on a rank: the local steps of each of its turns."""
        return self.settings.local_steps * self.hosting.turns

    @property
    def num_nodes(self) -> int:
        """Number of nodes; set by the Trainer."""
        return self._num_nodes

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.num_nodes * self.num_processes, "rank": self.global_rank}

    @property
    def site_names(self) -> tuple[str, ...]:
        """For each rank the name of its site, once the ranks have met; empty where sites have no names."""
        return self._site_names

    def own_file(self, name: str) -> str:
        """Name of this rank's own file, where other ranks may write theirs into the same folder."""
        stem, dot, ending = name.rpartition(".")
        return name if self.global_rank == 0 else f"{stem}-rank{self.global_rank}{dot}{ending}"

    @property
    def site_that_others_outlast(self) -> str | None:
        """Name of this rank's site, where the run may continue without it; None where its end is that of the run."""
        return None

    @property
    def completed(self) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """Adds to a checkpoint of the weights alone what a run needs to continue from it; None for nothing."""
        return None

    def alone(self) -> AbstractContextManager[None]:
        """Until the end of the block: what looks like a collective is this site's own, where sites come and go."""
        return nullcontext()

    def joined(self) -> Admission | None:
        """For a site that begins in the middle of a run: with which round, once it is a member; None for all others."""
        return None

    def begin_engine(self, engine: RoundEngine, round_index: int) -> None:
        """For a site that has joined: make the engine begin with a round."""
        engine.begin_at(round_index)

    def drain(self) -> None:
        """This rank has trained its last round."""

    def end_rounds(self, round_index: int) -> None:
        """This rank has merged everything; wait for the others where they may need something of it.

        Args:
            round_index: The last round.
        """

    def begin_round(self, round_index: int, state: Callable[[], bytes]) -> None:
        """The first local step of a round begins.

        Args:
            round_index: The round.
            state: Returns where this site's trainer is, for sites that join.
        """

    # --- the start ----------------------------------------------------------------------------------------------------

    @override
    def make_launcher(self) -> ProcessLauncher | FunctionLauncher:
        assert self.cluster_environment is not None
        start_method = self._start_method
        if isinstance(self.cluster_environment, (SiteEnvironment, ElasticEnvironment)):
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

    @override
    def setup_environment(self) -> None:
        """Join the default process group and begin to watch the other ranks; collective."""
        super().setup_environment()
        self._set_world_ranks()
        self._settings.take_seed()
        settings = self.settings
        reset_seed()
        self._federation = None
        if self.world_size > 1:
            raise_limit()
            self._join(settings)
        else:
            if self._links is not None:
                refuse_open_group(self._links)  # what Lightning or torchmetrics gather would go over it
            self._site_names = () if self._site is None else (self._site,)
        self.has_failed = False
        refuse_numbers(settings, self.world_size)
        self._federation = open_federation(settings, self.hosting.by_rank, self.site_names, self._hosts)

    def _set_world_ranks(self) -> None:
        if self.cluster_environment is not None:
            self.cluster_environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)
            self.cluster_environment.set_world_size(self.num_nodes * self.num_processes)
        # Lightning's rank-zero helpers read the rank off their own function object.
        setattr(rank_zero_only, "rank", self.global_rank)  # noqa: B010

    def _join(self, settings: Settings) -> None:
        """Meet the other ranks, adopt the rank that the meeting assigned, and open the default group."""
        assert self.cluster_environment is not None
        if self._links is not None:
            refuse_shared_links(self._links, n_processes=self.num_processes, backend=self.process_group_backend)
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
            links=self._links,
            timeout=self._timeout,
            device_id=self.root_device if self.root_device.type == "cuda" else None,
        )
        while_others_live(lambda: met.append(join()))
        self._site_names, self._hosts = met[0].site_names, tuple(one.host for one in met[0].ranks)

    # --- the end ------------------------------------------------------------------------------------------------------

    @override
    def on_exception(self, exception: BaseException) -> None:
        # Never waits for peers: they may be what failed.
        if self.has_failed:
            return
        self.has_failed = True
        if isinstance(exception, SystemExit) and not exception.code and self.world_size > 1:
            log.error(
                "parablock: sys.exit(%s) in the middle of a run ends it for all clients, so the exit code is 1; to end "
                "training early set trainer.should_stop on all clients at the same batch",
                "" if exception.code is None else exception.code,
            )
            exception.code = 1
        if self.watch is not None:
            self.watch.abort(f"{type(exception).__name__}: {exception}")
        end_others()

    def part(self) -> None:
        """End of a run: say good-bye and wait until all ranks have done so, or one has failed.

        Raises:
            PeerError: another rank has failed since training ended, in which case this one's exit code must tell so.
        """
        federation, self._federation = self._federation, None
        if federation is None or federation.watch is None or self.has_failed:
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

    @override
    def teardown(self) -> None:
        if self.cluster_environment is not None:
            super().teardown()
