"""What a regroup leads to, as a pure function of what the sites have reported; docs/method.md has the reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_parablock.errors import MembershipError, TooFewSitesError, WeightsLostError
from lightning_parablock.regroup.candidates import clients_of_joiners, unfit_joiners
from lightning_parablock.regroup.keys import BEFORE_ALL, Key
from lightning_parablock.regroup.lineage import Lineage, goes_back, newest_of
from lightning_parablock.regroup.log import MembershipLog, Record, Restored
from lightning_parablock.regroup.report import Decision, Report, Source, Standing


@dataclass(frozen=True)
class Rules:
    """What a decision depends on besides the reports; the same at all sites.

    Attributes:
        topology: "star" or "sharded".
        min_clients: Fewer members than this do not continue.
        n_blocks: Number of blocks.
        has_server_state: Whether servers keep state besides W: moments, or residuals of a lossy codec.
        drops: Whether exchanges that are not kept are dropped instead of redone.
        roster: Names of the sites that may take part; None for any.
        most_members: No more members than this; None for any number.
    """

    topology: str = "star"
    min_clients: int = 1
    n_blocks: int = 1
    has_server_state: bool = False
    drops: bool = False
    roster: frozenset[str] | None = None
    most_members: int | None = None

    def servers(self, record: Record) -> tuple[int, ...]:
        """Client ids of a generation's servers, in the order of their shards."""
        return record.order[:1] if self.topology == "star" else record.order


@dataclass(frozen=True)
class _Here:
    """A member of the current generation that has reported: a survivor or a leaver."""

    report: Report
    standing: Standing


def decide(
    generation: int, reports: Sequence[Report], rules: Rules, why_gone: Mapping[int, str] | None = None
) -> Decision:
    """Decide who the members of a new generation are, what is kept, and where everything comes from.

    Args:
        generation: Number of the new generation, greater than any that a reporter has sealed before.
        reports: One per site, each made after the site has sealed ``generation``; their order does not matter.
        rules: See :class:`Rules`.
        why_gone: Why members are lost, by client id, where the coordinator knows more than that they are.

    Raises:
        TooFewSitesError: fewer than ``min_clients`` sites would be members.
        WeightsLostError: no report holds W, and a site that was a member of the run before may not found one.
        MembershipError: the reports contradict each other.
    """
    _refuse_contradictions(generation, reports)
    members = [report for report in reports if not report.is_leaving]
    opened = [report.opened.log.generation for report in reports if report.opened is not None]
    if not opened:
        _refuse_too_few(len(members), members, rules)
        return _found(generation, members, rules)
    return _continue(generation, reports, max(opened), rules, why_gone or {})


def _found(generation: int, founders: Sequence[Report], rules: Rules) -> Decision:
    """No site holds W: the run begins, or begins again where the newest checkpoint does."""
    founders = sorted(founders, key=lambda report: report.site)
    # Files of unrelated runs are refused by all founders as soon as they compare what they hold.
    donor = newest_of([(report.checkpoint_round, report.lineage) for report in founders])
    begin = -1 if donor is None else founders[donor].checkpoint_round
    may_not = [report.site for report in founders if report.noted]
    if begin < 0 and may_not:
        raise WeightsLostError(
            f"no site holds the committed model: {_sites(may_not)} had started this run before and holds nothing of it "
            "any more; start all sites again with ckpt_path set to the newest checkpoint that one of them has"
        )
    if donor is not None:
        _refuse_to_go_back(founders, founders[donor].lineage)
    ids = tuple(range(len(founders)))
    record = Record(
        generation=generation,
        members=ids,
        joiners=ids,
        order=ids,
        first_round=max(begin, 0),
        kept=BEFORE_ALL if begin < 0 else (begin - 1, rules.n_blocks - 1),
        sites={client: founder.site for client, founder in enumerate(founders)},
        samples={client: founder.samples for client, founder in enumerate(founders)},
        drops=rules.drops,
    )
    return Decision(record, MembershipLog((record,)), landed={}, donor=donor)


def _refuse_to_go_back(founders: Sequence[Report], lineage: Lineage) -> None:
    """A command that is run again names the file from which the lost run began, and not that run's own files."""
    back = [report for report in founders if goes_back(lineage, report.noted)]
    if back:
        notes = ", ".join(f"parablock-run-of-{report.site}-at-....json" for report in back)
        raise WeightsLostError(
            f"{_sites([report.site for report in back])} had started run {back[0].noted[-1][:8]}, which had continued "
            f"run {lineage[-1][:8]} of the newest checkpoint here: start a site that has a checkpoint of the younger "
            f"run, or delete {notes} there to give its rounds up"
        )


def _continue(
    generation: int, reports: Sequence[Report], current: int, rules: Rules, why_gone: Mapping[int, str]
) -> Decision:
    log, here, others = _of_generation(current, reports)
    before = log.newest
    survivors = sorted(client for client, one in here.items() if not one.report.is_leaving)
    joining = [report for report in others if not report.is_leaving]
    most = None if rules.most_members is None else rules.most_members - len(survivors)
    unfit = unfit_joiners([report.site for report in joining], rules.roster, most)
    ids, refused = clients_of_joiners(log, [report for report in joining if report.site not in unfit])
    refused |= unfit
    joiners = sorted(ids)
    members = tuple(sorted([*survivors, *joiners]))
    sites = {**before.sites, **{client: report.site for client, report in ids.items()}}
    _refuse_too_few(len(members), [report for report in reports if not report.is_leaving], rules, refused)

    kept = max(one.standing.landed for one in here.values())
    started = max([kept[0], *(one.report.started for one in here.values())])
    sources = _sources(before, here, kept, rules)
    record = Record(
        generation=generation,
        members=members,
        joiners=tuple(joiners),
        order=(*(client for client in before.order if client in survivors), *joiners),
        first_round=max(started + 1, before.first_round),
        kept=kept,
        sites=sites,
        samples={client: report.samples for client, report in sorted(ids.items())},
        gone={
            client: "left" if client in here else why_gone.get(client, "lost")
            for client in before.members
            if client not in members
        },
        restored=tuple(Restored(one.block, one.server, one.label) for one in sources if one.server not in here),
        drops=rules.drops,
    )
    return Decision(
        record=record,
        log=log.and_then(record),
        landed={client: one.standing.landed for client, one in sorted(here.items())},
        donor=min(client for client, one in here.items() if one.standing.landed == kept),
        sources=sources,
        refused=refused,
    )


def _of_generation(current: int, reports: Sequence[Report]) -> tuple[MembershipLog, dict[int, _Here], list[Report]]:
    """The log up to the current generation, its members that are here by client id, and all other reports.

    A member that has acknowledged the generation has everything that it opens with, so it counts as having opened it.
    A generation that was acknowledged and that no reporter has opened never existed; nor did one of another coordinator
    that happens to have the same number.
    """
    opened = [report for report in reports if report.opened and report.opened.log.generation == current]
    logs = [report.opened.log for report in opened if report.opened]
    log = logs[0]
    for report, other in zip(opened, logs, strict=True):
        if other != log:
            raise MembershipError(
                f"the membership logs of {_sites([opened[0].site, report.site])} differ although both end with "
                f"generation {current}: two runs have met, or the run has split; stop one side and start its sites "
                "again, so that they join the other one"
            )
    here: dict[int, _Here] = {}
    others: list[Report] = []
    for report in reports:
        client = log.client_of(report.site)
        standing = next((one for one in (report.opened, report.acknowledged) if one and one.log == log), None)
        if standing is None or client not in log.newest.members:
            others.append(report)
        else:
            here[client] = _Here(report, standing)
    if not here:
        raise WeightsLostError(
            f"no member of generation {current} is here, only sites that are none any more: "
            f"{_sites([report.site for report in others])}; start all sites again with ckpt_path set to the newest "
            "checkpoint that one of them has"
        )
    return log, here, others


def _sources(before: Record, here: Mapping[int, _Here], kept: Key, rules: Rules) -> tuple[Source, ...]:
    """Where each piece of server state comes from: its server, or else the holder of its newest usable backup."""
    if not rules.has_server_state:
        return ()
    return tuple(
        _source(block, server, before, here, kept)
        for block in range(rules.n_blocks)
        for server in rules.servers(before)
    )


def _source(block: int, server: int, before: Record, here: Mapping[int, _Here], kept: Key) -> Source:
    if server in here:
        usable = [label for label in here[server].standing.served.get(block, ()) if label[0] <= kept]
        if not usable:
            raise MembershipError(
                f"site {before.sites.get(server, server)!r} no longer has the server state of block {block} as of "
                f"round {kept[0]}, which the others need to continue: this is an error of the program; start all sites "
                "again from the last checkpoint"
            )
        return Source(block, server, server, max(usable))
    held = [
        (label, -client)
        for client, one in here.items()
        for label in one.standing.backups.get((block, server), ())
        if label[0] <= kept
    ]
    if not held:
        return Source(block, server, None, None)
    label, negative = max(held)
    return Source(block, server, -negative, label)


def _refuse_contradictions(generation: int, reports: Sequence[Report]) -> None:
    names = sorted(report.site for report in reports)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MembershipError(f"{_sites(twice)} has reported more than once: run one process per site")
    known = [one.log.generation for report in reports for one in (report.opened, report.acknowledged) if one]
    if known and max(known) >= generation:
        raise MembershipError(
            f"generation {generation} cannot begin: a site has acknowledged or opened generation {max(known)} already"
        )


def _refuse_too_few(
    n_members: int, reports: Sequence[Report], rules: Rules, refused: Mapping[str, str] | None = None
) -> None:
    if n_members >= max(rules.min_clients, 1):
        return
    names = [report.site for report in reports if report.site not in (refused or {})]
    raise TooFewSitesError(
        f"{n_members} {'site is' if n_members == 1 else 'sites are'} here ({_sites(names)}), and min_clients is "
        f"{rules.min_clients}: start the others, or those that were lost, again"
    )


def _sites(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in sorted(names)]
    return ("site " if len(quoted) == 1 else "sites ") + ", ".join(quoted) if quoted else "no site"
