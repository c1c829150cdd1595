"""The private network of a run with ``federation``: read and checked when the strategy is made."""

from __future__ import annotations

from pathlib import Path

from lightning_parablock.checks import require
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.meeting.rendezvous import Address
from lightning_parablock.meeting.roster_links import links_of
from lightning_parablock.settings import Settings
from lightning_parablock.site_kit.membership import Member, read_member


def member_of(settings: Settings, site: str | None) -> Member | None:
    """The roster and the keys that the settings name, read once per strategy; None without ``federation``.

    Args:
        settings: The run's settings.
        site: Name of this process' site.

    Raises:
        ConfigurationError: the roster or this site's keys cannot be used.
    """
    if settings.federation is None:
        return None
    require(
        site is not None,
        f"federation={settings.federation!r} needs site: the name under which this machine is in the roster; add "
        "--site NAME",
    )
    assert site is not None
    keys = None if settings.keys is None else Path(settings.keys)
    return read_member(Path(settings.federation), keys, site)


def private_links(settings: Settings, member: Member | None, *, rendezvous: str | None) -> PrivateLinks | None:
    """The links of a federation; None without one.

    Args:
        settings: The run's settings.
        member: This site and the roster.
        rendezvous: Where sites of a fixed membership meet; None where the launcher says it, or with a lighthouse.

    Raises:
        ConfigurationError: an address is outside the private network.
    """
    if member is None:
        return None
    links = links_of(member)
    if settings.lighthouse is not None:
        links.check_lighthouse(settings.lighthouse)
    if rendezvous is not None:
        links.check_meeting(Address.parse("rendezvous", rendezvous).host, "rendezvous")
    return links


def refuse_shared_links(links: PrivateLinks, *, n_processes: int, backend: str) -> None:
    """Refuse processes that would share an address, and a backend that chooses its own.

    Args:
        links: The private network.
        n_processes: Processes on this machine.
        backend: Of the process groups.

    Raises:
        ConfigurationError: names the option, and what to do.
    """
    require(
        n_processes == 1,
        f"devices={n_processes}: with federation ({links.federation}) each site is one process, since the roster gives "
        "it one address; use devices=1 and num_nodes=NUMBER OF SITES",
    )
    require(
        "nccl" not in backend,
        f"process_group_backend={backend!r} with federation ({links.federation}) is not supported: nccl chooses its "
        "network interfaces itself; use 'gloo'",
    )
