"""What goes wrong in a simulated run: by the clock, or at the moment at which it does most harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import Record

if TYPE_CHECKING:
    from tests.regroup.site import Site
    from tests.regroup.world import World


class Faults:
    """Base of the simulated world."""

    def start(self: World, name: str, *, checkpoint_round: int = -1) -> Site:
        site = self.site_class(self, name, len(self.everyone), checkpoint_round)
        self.processes[name] = site
        self.everyone.append(site)
        self.on(site, self.rng.random(), site.poll)
        return site

    def join(self: World, name: str) -> None:
        """A site is started that does not run now."""
        if name in self.processes and (self.processes[name].is_alive or self.processes[name].said_goodbye):
            return
        self.note("joins")
        self.start(name)

    def kill(self: World, name: str, restart: bool = False) -> None:
        site = self.processes.get(name)
        if site is None or not site.is_alive:
            return
        self.note("kills")
        self.stats["kills during a regroup"] += site.membership.is_sealed
        self.stats["kills in the drain"] += site.next_round >= self.task.n_rounds
        self.die(site)
        if restart:
            self.at(self.rng.random() * self.rng.choice((1, 8, 30)), self.join, name)
        self.look_for_end()

    def die(self: World, site: Site) -> None:
        """Of what the process has sent, only a part arrives."""
        site.is_alive, site.died_at, site.notice_after = False, self.now, self.rng.random() * 5
        for other in self.processes.values():
            cut = self.now + self.rng.choice((0.0, 0.0, self.rng.random() * 3))
            self.cuts[site.number, other.number] = cut

    def kill_the_one_ahead(self: World, restart: bool = True) -> None:
        ready = [site for site in self.alive() if site.membership.generation >= 0 and not site.is_stopped]
        if len(ready) > 1:
            self.stats["kills of the one ahead"] += 1
            self.kill(max(ready, key=lambda site: site.started).name, restart)

    def stop(self: World, name: str, seconds: float) -> None:
        site = self.processes.get(name)
        if site is None or not site.is_alive or site.is_stopped:
            return
        self.note("stops")
        site.is_stopped, site.stopped_at = True, self.now
        self.at(seconds, self.wake, site)

    def wake(self: World, site: Site) -> None:
        """It goes on where it was, with everything that has arrived; only a later look tells what it has missed."""
        if not site.is_alive:
            return
        self.progress = self.now
        site.is_stopped = False
        mail, site.mail = site.mail, []
        for call, args in mail:
            if site.is_alive:
                call(*args)

    def leave(self: World, name: str) -> None:
        site = self.processes.get(name)
        if site is None or not site.is_alive or site.is_drained or site.membership.generation < 0:
            return
        self.note("leaves")
        site.leave()
        for one in self.alive():  # it tells all others
            self.on(one, self.rng.random(), one.look)

    def restart_zombie(self: World, site: Site) -> None:
        """A process that learns that the run has continued without it discards everything and starts again."""
        self.note("zombies")
        self.die(site)
        site.notice_after = 0.0
        self.at(0.1, self.join, site.name)
        self.look_for_end()

    def note(self: World, what: str) -> None:
        self.progress = self.now
        self.stats[what] += 1

    # --- at the worst moment, once for each of ``aims`` ---------------------------------------------------------------

    def note_opening(self: World, site: Site, record: Record) -> None:
        """A site has opened a generation: the only one that has started round n - 1 dies, where joiners start at n."""
        newest = [one for one in self.alive() if one.started == record.first_round - 1]
        if "ahead" in self.aims and len(site.membership.log.records) > 1 and record.joiners and len(newest) == 1:
            self.aims.remove("ahead")
            self.kill(newest[0].name, self.rng.random() < 0.5)

    def note_landing(self: World, site: Site) -> None:
        """An exchange has landed that was served before and then redone: its first server dies.

        Or one has landed here and nowhere else: the site leaves.
        """
        self.progress = self.now
        server = site.peers[site.membership.log.newest.order[0]]
        if "server" in self.aims and site.landed <= server.redone_up_to and site is not server:
            self.aims.remove("server")
            self.kill(server.name, self.rng.random() < 0.5)
        others = [one for one in site.peers.values() if one is not site]
        is_ahead = others and all(one.landed < site.landed for one in others) and not site.is_drained
        if "leaver" in self.aims and is_ahead:
            self.aims.remove("leaver")
            self.leave(site.name)

    def note_backup(self: World, holder: Site, server: int, key: Key) -> None:
        """A backup is here before its exchange has landed anywhere: who has to serve a part of it dies.

        It is back at once, so that the backup's server keeps its part; and the next backups take long.
        """
        order = holder.membership.log.newest.order
        lost = holder.peers[order[-1]]
        if "backup" not in self.aims or order.index(server) or len(order) < 3 or self.task.topology == "star":
            return
        if all(one.landed < key for one in holder.peers.values()) and lost is not holder and lost.is_alive:
            self.aims.remove("backup")
            self.aims.add("server")
            self.backup_lag = 30.0
            self.kill(lost.name)
            self.join(lost.name)
            self.processes[lost.name].ready_at = self.now

    def note_drained(self: World, site: Site) -> None:
        """A site has merged everything: one that has not dies."""
        others = [one for one in site.peers.values() if one.is_alive and not one.is_drained]
        if "drain" in self.aims and others:
            self.aims.remove("drain")
            self.kill(self.rng.choice(others).name, self.rng.random() < 0.5)
