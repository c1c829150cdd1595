"""The strategy as a site of an elastic run: how it enters, who else is there, and which files are its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_parablock.elastic.journal import Line
from lightning_parablock.elastic.torchft import require_installed
from lightning_parablock.elastic.view import Admission, HeldCheckpoint
from lightning_parablock.errors import ConfigurationError, CutOffError, DroppedError
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.launching.agreement import versions_here
from lightning_parablock.launching.elastic_environment import ElasticEnvironment, elastic_environment
from lightning_parablock.launching.launcher import FunctionLauncher, ProcessLauncher
from lightning_parablock.loading.fit_loaders import JoiningRules
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.settings import Settings
from lightning_parablock.site_kit.version_fact import version_fact
from lightning_parablock.strategy.elastic_files import searching_own
from lightning_parablock.strategy.elastic_refusals import refuse_elastic_options
from lightning_parablock.strategy.elastic_run import ElasticRun, open_site
from lightning_parablock.strategy.groups import Group
from lightning_parablock.strategy.hosting import Hosting
from lightning_parablock.strategy.options import ProcessOptions
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.system.again import run_again

T = TypeVar("T")


class ElasticRanks(RankStrategy):
    """Ranks of a fixed membership, or with ``lighthouse`` one site of a membership that changes.

    Only fits have a membership: evaluations and predictions of an elastic run are each site's own.

    Args:
        settings: The settings as the user gave them.
        processes: How the processes start and meet.
        **ranks: The other arguments of :class:`~lightning_parablock.strategy.ranks.RankStrategy`.
    """

    def __init__(self, settings: Settings, processes: ProcessOptions, **ranks: Any) -> None:
        refuse_elastic_options(
            settings,
            site=processes.site,
            rendezvous=processes.rendezvous,
            backend=processes.process_group_backend,
            start_method=processes.start_method,
        )
        self._elastic: ElasticRun | None = None
        self._dropped: DroppedError | None = None
        # What stays of the newest fit when an evaluation follows: not its site, which holds W.
        self._past_log, self._past_lines = MembershipLog(), tuple[Line, ...]()
        self._environment: ElasticEnvironment | None = None
        if settings.lighthouse is not None:
            require_installed()
            if ranks["cluster_environment"] is not None:
                raise ConfigurationError("lighthouse and cluster_environment both say how the sites meet; keep one")
            ranks["cluster_environment"] = self._environment = elastic_environment(settings.lighthouse)
        super().__init__(settings, processes, **ranks)

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def elastic(self) -> ElasticRun | None:
        """This site's part in an elastic run; None with a fixed membership, and before the site has entered."""
        return self._elastic

    @property
    def membership_log(self) -> MembershipLog:
        """All generations of an elastic run, oldest first; empty with a fixed membership.

        Evaluations and predictions keep the log of the fit before them.
        """
        return self._past_log if self._elastic is None else self._elastic.site.log

    @property
    def membership_lines(self) -> tuple[Line, ...]:
        """What this site has noted of the openings, with times, oldest first; kept and empty as the log is."""
        return self._past_lines if self._elastic is None else self._elastic.site.journal.lines

    @property
    def client_sites(self) -> Mapping[int, str]:
        """Name of the site of each client that an elastic run has ever had; empty with a fixed membership."""
        return {} if self._elastic is None else self._elastic.client_sites

    @property
    @override
    def is_global_zero(self) -> bool:
        # No site can read the files of another: each writes its own.
        return self._environment is not None or super().is_global_zero

    @property
    @override
    def is_alone(self) -> bool:
        return self._elastic is None and super().is_alone

    @property
    @override
    def group(self) -> Group:
        return super().group if self._elastic is None else self._elastic.group

    @property
    @override
    def hosting(self) -> Hosting:
        return super().hosting if self._elastic is None else self._elastic.hosting

    @property
    @override
    def hosted_clients(self) -> tuple[int, ...]:
        return super().hosted_clients if self._elastic is None else (self._elastic.client,)

    @property
    @override
    def site_names(self) -> tuple[str, ...]:
        return super().site_names if self._elastic is None else self._elastic.site_names

    @override
    def describe(self, rank: int) -> str:
        return super().describe(rank) if self._elastic is None else self._elastic.describe(rank)

    @override
    def barrier(self, name: str | None = None) -> None:
        if self._elastic is None or name != "Trainer.save_checkpoint":  # each site saves when its callbacks say so
            super().barrier(name)

    @override
    def broadcast(self, obj: T, src: int = 0) -> T:
        if self._elastic is not None and _is_for_log_dir():
            return obj
        return super().broadcast(obj, src)

    @override
    def alone(self) -> AbstractContextManager[None]:
        return nullcontext() if self._elastic is None else self._elastic.group.alone()

    @override
    def joined(self) -> Admission | None:
        if self._elastic is None or self._elastic.entry.is_founder:
            return None if self._elastic is None else self._elastic.beginning
        return self._elastic.site.await_admission()

    @override
    def own_file(self, name: str) -> str:
        if self._elastic is None:
            return super().own_file(name)
        stem, dot, ending = name.rpartition(".")
        return f"{stem}-{self._elastic.name_of(self._elastic.client)}{dot}{ending}"

    @property
    @override
    def site_that_others_outlast(self) -> str | None:
        return None if self._elastic is None else self._site

    @override
    def begin_engine(self, engine: RoundEngine, round_index: int) -> None:
        assert self._elastic is not None, "only sites of an elastic run begin in its middle"
        if self._elastic.entry.is_founder:  # of a run that continues from a checkpoint, of which all founders hold W
            engine.begin_at(round_index)
        else:
            self._elastic.site.begin_engine(engine, round_index)

    @override
    def drain(self) -> None:
        if self._elastic is not None:
            self._elastic.site.drain()

    @override
    def end_rounds(self, round_index: int) -> None:
        if self._elastic is not None:
            self._elastic.site.finish(round_index)

    @override
    def begin_round(self, round_index: int, state: Callable[[], bytes]) -> None:
        if self._elastic is not None:
            self._elastic.begin_round(round_index, state)

    def joining_rules(self) -> JoiningRules | None:
        """What differs for loaders where sites come and go."""
        if self._elastic is None:
            return None
        return JoiningRules(self.broadcast, self._elastic.is_newcomer)

    # --- start and end ------------------------------------------------------------------------------------------------

    @override
    def make_launcher(self) -> ProcessLauncher | FunctionLauncher:
        launcher = super().make_launcher()
        if self._environment is not None and isinstance(launcher, ProcessLauncher):
            assert self._site is not None
            launcher.searching = partial(searching_own, site=self._site)
        return launcher

    @override
    def setup_environment(self) -> None:
        self._forget_site()
        if self._environment is not None:
            self._environment.forget()
        super().setup_environment()
        if self._environment is not None and self._takes_part:
            self._enter(self._environment)

    def _forget_site(self) -> None:
        keeps = not self._takes_part
        self._past_log = self.membership_log if keeps else MembershipLog()
        self._past_lines = self.membership_lines if keeps else ()
        self._elastic = self._dropped = None

    def _enter(self, environment: ElasticEnvironment) -> None:
        assert self._site is not None
        facts = versions_here() | self.settings.fingerprint() | version_fact(self._member)
        checkpoint = self._held_checkpoint()
        site = open_site(self.settings, self._site, self._site_folder, self._links)
        try:
            run = ElasticRun.enter(self, site, facts, checkpoint)
        except BaseException:
            site.close()  # else it would be there for the others, and found a run with them in which nothing trains
            raise
        environment.follow(run.client, lambda: run.group.clients)
        self._elastic = run
        if not run.entry.is_founder:
            rank_zero_info(
                f"parablock: site {self._site} is let into the run; it gets the model from a member and then joins"
            )

    @property
    def _takes_part(self) -> bool:
        """Whether what the trainer does now has a membership."""
        return True

    @property
    def _site_folder(self) -> Path | None:
        """Where the site may note something."""
        return None

    def _held_checkpoint(self) -> HeldCheckpoint | None:
        """What this site would continue from."""
        return None

    @override
    def on_exception(self, exception: BaseException) -> None:
        if isinstance(exception, DroppedError):
            self._dropped = exception
        super().on_exception(exception)
        self._close_site()

    @property
    def is_dropped(self) -> bool:
        """Whether the others have continued without this site: what it holds is void, and is not saved."""
        return self._dropped is not None

    @override
    def teardown(self) -> None:
        super().teardown()
        if self._dropped is not None and not isinstance(self._dropped, CutOffError):
            run_again(str(self._dropped))

    @override
    def part(self) -> None:
        super().part()
        self._close_site()

    def _close_site(self) -> None:
        if self._elastic is not None:
            self._elastic.site.close()


def _is_for_log_dir() -> bool:
    """Whether it is ``trainer.log_dir`` that asks for the first rank's folder: any callback may read it at any time."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    return frame.f_code.co_name == "log_dir" and isinstance(frame.f_locals.get("self"), Trainer)
