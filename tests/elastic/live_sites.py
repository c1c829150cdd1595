"""Sites of an elastic run as threads of one process: real desks, real gloo groups, an arbiter in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.elastic.generation_masks import MaskMaker
from lightning_parablock.elastic.opening import committed_at, open_elastic
from lightning_parablock.elastic.run_record import RunRecord
from lightning_parablock.elastic.seat import SiteOptions
from lightning_parablock.elastic.site import Site
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.errors import MembershipError
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.federation.joining import start_at
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.settings import Settings
from tests.support.engine import blocks_of
from tests.support.local_arbiter import LocalLighthouse

made: list[ToySite] = []
"""All of a test."""


class KilledError(Exception):
    """A test has killed the site."""


class ToySite(threading.Thread):
    """One site: enters, trains toy rounds, and ends after ``rounds``; or is killed.

    Args:
        name: Of the site.
        lighthouse: Arbiter of all sites.
        settings: The run's settings.
        rounds: How many the run has.
        pause_s: Seconds a local step takes.
        min_clients: How many found the run.
        masks: Of this process, for secure sums.
    """

    def __init__(
        self,
        name: str,
        lighthouse: LocalLighthouse,
        settings: Settings,
        rounds: int,
        *,
        pause_s: float,
        min_clients: int,
        rejoin_timeout_s: float = 30.0,
        record: RunRecord | None = None,
        masks: MaskMaker | None = None,
    ) -> None:
        super().__init__(name=f"site {name}", daemon=True)
        self.site_name, self.lighthouse, self.settings, self.rounds = name, lighthouse, settings, rounds
        self.pause_s, self.masks = pause_s, masks
        options = SiteOptions(
            site=name,
            lighthouse="here:1",
            min_clients=min_clients,
            rejoin_timeout_s=rejoin_timeout_s,
            admit_every_rounds=1,
            silence_s=lighthouse.silence_s,
            topology=settings.topology,
            has_server_state=False,
            drops=masks is not None,
        )
        self.site = Site(options, lighthouse.arbiter(), "127.0.0.1", record=record)
        self.transport: ElasticTransport | None = None
        self.engine: RoundEngine | None = None
        self.weights: list[Tensor] = []
        self.gathered: list[dict[int, bytes]] = []
        self.error: BaseException | None = None
        self.is_killed = False
        self.on_round: Callable[[int], None] = lambda t: None
        self.started_at = -1
        made.append(self)

    def kill(self) -> None:
        """The process ends, without a word."""
        self.is_killed = True
        self.lighthouse.drop(self.site_name)
        self.site.seat.fail(MembershipError("killed"))
        self.site.close()
        if self.transport is not None:
            self.transport.close()

    def leave(self) -> bool:
        """Leave on purpose; afterwards the training ends."""
        has_left = self.site.leave()
        self.is_killed = True
        self.site.seat.fail(MembershipError("left"))
        return has_left

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = KilledError() if self.is_killed else error
        finally:
            if self.transport is not None:
                self.transport.close()

    def _run(self) -> None:
        entry = self.site.enter({"settings": "the same"})
        model, flat = toy_model()
        self.site.keep_agreed(entry.agreed or b"agreed")
        settings, site = self.settings, self.site
        cohorts = Cohorts(
            len(entry.sites), settings.cohort, seed=settings.seed, members_at=lambda t: site.log.members_at(t)
        )
        schedule = Schedule(settings.block_order, len(flat.blocks), settings.seed, cohorts)
        self.transport = open_elastic(site, flat, settings, schedule, device=torch.device("cpu"), masks=self.masks)
        self.engine = engine = RoundEngine(flat, settings, (site.client,), self.transport, schedule, 1)
        if not entry.is_founder:
            admission = site.await_admission()
            assert admission.trainer_state == str(admission.round).encode()
            committed = committed_at(self.transport, schedule, settings, admission.round)
            start_at(engine, admission.round, dict(enumerate(committed)))
        self.started_at = engine.round
        while engine.round < self.rounds:
            self._round(engine, flat, model)
        engine.finish()
        self.gathered.append(site.gather("names", site.seat.options.site.encode(), engine.round - 1))
        site.finish(engine.round - 1)
        self.weights = [flat.pack(block) for block in range(len(flat.blocks))]

    def _round(self, engine: RoundEngine, flat: FlatBlocks, model: nn.Module) -> None:
        t = engine.round
        turns = engine.begin_round()
        self.site.keep_round_start(t, str(t).encode())
        self.on_round(t)
        for client in turns:
            engine.begin_turn(client)
            for step in range(self.settings.local_steps):
                if self.is_killed:
                    raise KilledError
                time.sleep(self.pause_s)
                if client is not None:
                    train(model, flat, engine.block, client, t * self.settings.local_steps + step)
                engine.after_step()
            engine.end_turn()
        engine.end_round()


def toy_model() -> tuple[nn.Module, FlatBlocks]:
    """What the sites train, before the first step."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2))
    for index, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) * (index + 1) / 10)
    return model, FlatBlocks(model, blocks_of(model, [["0.weight", "0.bias"], ["1.weight", "1.bias"], ["2.weight"]]))


@torch.no_grad()
def train(model: nn.Module, flat: FlatBlocks, block: int, client: int, step: int) -> None:
    """A local step: moves the block by something that depends on all of the model, the client and the step."""
    others = torch.stack([p.sum() for p in model.parameters()]).sum()
    for parameter in flat.parameters(block):
        pull = torch.sin(parameter * (client + 2) + step * 0.37) + 0.1 * torch.sin(others)
        parameter.sub_(pull, alpha=0.05)


def until(is_so: Callable[[], bool], sites: Iterable[ToySite], limit_s: float) -> None:
    """Wait for something, and raise what ends a site that was not killed."""
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        for site in sites:
            if site.error is not None and not isinstance(site.error, KilledError):
                raise site.error
        assert time.monotonic() < deadline_s, [(site.site_name, site.engine and site.engine.round) for site in sites]
        time.sleep(0.01)
