"""A simulated site: one process with its training, its part in exchanges, and its part in regroups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lightning_parablock.regroup.candidates import Candidate, coordinator_of
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.member import Membership
from tests.regroup.coordinating import Attempt, Coordinates
from tests.regroup.exchanging import Exchanges
from tests.regroup.regrouping import Prepared, Regroups
from tests.regroup.toy import Values
from tests.regroup.training import Training

if TYPE_CHECKING:
    from tests.regroup.world import World

LEAVING = 10.0  # a leaver waits no longer than this
GUEST = 8.0  # most time for which W is streamed to a guest before it can be admitted


class Site(Coordinates, Regroups):
    """One process.

    Attributes:
        client: Its client id; -1 before it is a member.
        started: The newest round that training has started.
        rounds: All rounds that it has started.
        next_round: The round that it starts next, or is in.
        redone_up_to: The newest exchange that the site has served in the generation before; it may be redone.
        drained: Members that are known to have merged everything.
        is_short_handed: Whether its last look at the list found too few sites.
    """

    exchanges_class: type[Exchanges] = Exchanges
    training_class: type[Training] = Training

    def __init__(self, world: World, name: str, number: int, checkpoint_round: int) -> None:
        self.world, self.name, self.number, self.task = world, name, number, world.task
        self.checkpoint_round = checkpoint_round
        self.was_member = any(site.membership.generation >= 0 for site in world.everyone)
        self.ready_at = world.now + (GUEST * world.rng.random() if self.was_member else 0.0)
        self.membership = Membership(name)
        self.exchanges = self.exchanges_class(self)
        self.training: Training | None = None
        self.steps: Iterator[float | None] | None = None
        self.is_blocked = False
        self.client = self.started = -1
        self.rounds: list[int] = []
        self.next_round = 0
        self.redone_up_to: Key = (-1, -1)
        self.peers: dict[int, Site] = {}
        self.drained: set[int] = set()
        self.early: list[tuple[str, Site, int, tuple[Any, ...]]] = []
        self.is_alive, self.is_stopped, self.is_leaving, self.is_drained = True, False, False, False
        self.said_goodbye, self.has_finished, self.has_left, self.is_short_handed = False, False, False, False
        self.stopped_at, self.died_at, self.notice_after, self.sealed_at = 0.0, 0.0, 0.0, 0.0
        self.mail: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.attempt: Attempt | None = None
        self.preparing: Prepared | None = None
        self.prepared: Prepared | None = None
        self.taken = -1
        self.waiting_pulls: list[tuple[Site, int, tuple[Any, ...]]] = []

    # --- messages -----------------------------------------------------------------------------------------------------

    def receive(self, kind: str, source: Site, generation: int, body: tuple[Any, ...]) -> None:
        if kind not in ("delta", "commit", "backup", "beat", "bye"):
            getattr(self, f"on_{kind}")(source, generation, *body)
        elif generation > self.membership.generation:
            self.keep_early(kind, source, generation, body)
        elif kind == "bye":
            self.on_bye(generation)
        elif self.accepts(generation):
            client = self.membership.log.client_of(source.name)
            assert client is not None
            if kind == "beat":
                self.on_beat(client, *body)
            else:
                getattr(self.exchanges, f"on_{kind}")(client, *body)

    def keep_early(self, kind: str, source: Site, generation: int, body: tuple[Any, ...]) -> None:
        """Messages of a generation that others have opened already wait."""
        self.early.append((kind, source, generation, body))

    def accepts(self, generation: int) -> bool:
        """Whether an exchange message of the generation may be taken or sent."""
        return generation == self.membership.generation and not self.membership.is_sealed

    def send_to(self, client: int, kind: str, *body: Any) -> None:
        self.world.send(self, self.peers[client], kind, self.membership.generation, *body)

    # --- what training asks of the site -------------------------------------------------------------------------------

    def may_start(self) -> bool:
        return not self.membership.is_sealed

    @property
    def landed(self) -> Key:
        return self.exchanges.landed

    @property
    def merged(self) -> int:
        return -1 if self.training is None else self.training.merged

    def work(self, t: int) -> dict[int, tuple[int, ...]]:
        return self.exchanges.work(t)

    def block_of(self, t: int) -> int | None:
        return next((b for b, clients in self.work(t).items() if self.client in clients), None)

    def commit_of(self, key: Key) -> Values:
        return self.exchanges.whole[key]

    def submit(self, key: Key, delta: Values, residual: Values) -> None:
        self.exchanges.submit(key, delta, residual)

    def note_merge(self) -> None:
        self.exchanges.release()

    # --- training's thread --------------------------------------------------------------------------------------------

    def begin_training(self, w: Values, merged: int, first: int) -> None:
        self.training = self.training_class(self, w, merged)
        self.steps = self.training.rounds(first)
        self.world.on(self, 0.0, self.step)

    def step(self) -> None:
        if self.steps is None:
            return
        for pause in self.steps:
            self.is_blocked = pause is None
            if pause is not None:
                self.world.on(self, pause, self.step)
            return
        self.steps = None
        self.is_drained = True
        self.beat()
        self.world.note_drained(self)
        self.look_for_end()

    def kick(self) -> None:
        """Something has changed for which training may be waiting."""
        if self.is_blocked:
            self.is_blocked = False
            self.step()

    # --- between members ----------------------------------------------------------------------------------------------

    def note_landing(self) -> None:
        self.beat()
        self.kick()
        self.world.note_landing(self)

    def beat(self) -> None:
        """Tell the others what has landed here, and whether everything is merged."""
        if self.is_drained:
            self.drained.add(self.client)
        if self.accepts(self.membership.generation) and self.membership.generation >= 0:
            for client in self.membership.log.newest.members:
                if client != self.client:
                    self.send_to(client, "beat", self.landed, self.is_drained)

    def on_beat(self, client: int, landed: Key, is_drained: bool) -> None:
        self.exchanges.known[client] = landed
        self.exchanges.release()
        if is_drained:
            self.drained.add(client)
            self.look_for_end()

    def look_for_end(self) -> None:
        """A member that has merged everything stays until all members have."""
        if self.is_drained and not self.membership.is_sealed and self.others_have_drained():
            for client in self.membership.log.newest.members:
                if client != self.client:
                    self.send_to(client, "bye")
            self.finish()

    def others_have_drained(self) -> bool:
        return self.drained >= set(self.membership.log.newest.members)

    def on_bye(self, generation: int) -> None:
        if generation == self.membership.generation and self.is_drained:
            self.finish()

    def finish(self) -> None:
        self.has_finished = self.said_goodbye = True
        self.is_alive = False
        self.world.look_for_end()

    def leave(self) -> None:
        self.is_leaving, self.steps, self.is_blocked = True, None, False
        self.world.on(self, LEAVING, self.stop_waiting)

    def stop_waiting(self) -> None:
        """Nobody has taken over what a leaver has: for the others it is lost."""
        self.world.kill(self.name)

    # --- the arbiter's list -------------------------------------------------------------------------------------------

    def poll(self) -> None:
        from tests.regroup.world import POLL

        self.world.on(self, POLL * (0.5 + self.world.rng.random()), self.poll)
        self.look()

    def look(self) -> None:
        listed = self.world.list_now()
        if self.membership.generation >= 0 and self.membership.was_dropped(self.world.newest_generation()):
            self.learn_of_drop()
            return
        candidates = [Candidate(one.name, one.membership.client, one.membership.generation) for one in listed]
        if not listed or coordinator_of(candidates) != self.name:
            self.attempt = None
            return
        self.coordinate([one for one in listed if one.membership.generation >= 0 or one.ready_at <= self.world.now])

    def learn_of_drop(self) -> None:
        self.world.restart_zombie(self)
