"""The processes of a run without a launcher: one per site, started by hand or by each site's own means."""

from __future__ import annotations

import os

from lightning.fabric.plugins import ClusterEnvironment
from typing_extensions import override

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.launching.launched import launched_devices
from lightning_parablock.meeting.rendezvous import Address


class SiteEnvironment(ClusterEnvironment):
    """What Lightning asks of a launcher, answered from the options ``site`` and ``rendezvous``.

    Args:
        address: Where the sites meet.
    """

    def __init__(self, address: Address) -> None:
        super().__init__()
        self.address = address
        self._n_sites = 1

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        return self.address.host

    @property
    @override
    def main_port(self) -> int:
        return self.address.port

    @staticmethod
    @override
    def detect() -> bool:
        return False

    @override
    def world_size(self) -> int:
        return self._n_sites

    @override
    def set_world_size(self, size: int) -> None:
        self._n_sites = size

    @override
    def global_rank(self) -> int:
        return 0  # until the sites have met

    @override
    def set_global_rank(self, rank: int) -> None:
        """The meeting gives the number."""

    @override
    def local_rank(self) -> int:
        return 0

    @override
    def node_rank(self) -> int:
        return self.global_rank()

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Raise unless each site is one process, and there are several.

        Raises:
            ConfigurationError: says the right values.
        """
        if num_devices != 1:
            raise ConfigurationError(
                f"with rendezvous each site is one process: trainer.devices must be 1, got {num_devices}"
            )
        if num_nodes == 1:
            raise ConfigurationError(
                f"rendezvous={str(self.address)!r}, but trainer.num_nodes is 1: set it to the number of sites"
            )


def site_environment(rendezvous: str, site: str | None) -> SiteEnvironment:
    """The environment of a site that meets the others at ``rendezvous``.

    Raises:
        ConfigurationError: it is no address, the site has no name, or a launcher has said otherwise.
    """
    address = Address.parse("rendezvous", rendezvous)
    if site is None:
        raise ConfigurationError(
            f"rendezvous={rendezvous!r} needs site: without a launcher the names of the sites give them their numbers; "
            "add --site NAME"
        )
    launched = launched_devices()
    n_launched = launched.get("devices", 1) * launched.get("num_nodes", 1)
    if n_launched > 1:
        raise ConfigurationError(
            f"rendezvous={rendezvous!r}, but a launcher has started {n_launched} processes of this run and said where "
            "they meet: leave out rendezvous, or start each site by itself"
        )
    for name, value in (("MASTER_ADDR", address.host), ("MASTER_PORT", str(address.port))):
        if os.environ.get(name, value) != value:
            raise ConfigurationError(
                f"rendezvous={rendezvous!r}, but {name}={os.environ[name]}: unset {name} or make them the same"
            )
    return SiteEnvironment(address)
