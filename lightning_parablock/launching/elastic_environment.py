"""What Lightning asks of a launcher, where each site is one process and sites come and go."""

from __future__ import annotations

from collections.abc import Callable

from lightning.fabric.plugins import ClusterEnvironment
from typing_extensions import override

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.launching.launched import launched_devices

Clients = tuple[int, ...]


class ElasticEnvironment(ClusterEnvironment):
    """The sites that take part in collectives now: Lightning's world size and global rank follow them.

    Args:
        lighthouse: ``host:port`` of the run's lighthouse.
    """

    def __init__(self, lighthouse: str) -> None:
        super().__init__()
        self._lighthouse = lighthouse
        self._client = 0
        self._present: Callable[[], Clients] | None = None

    def follow(self, client: int, present: Callable[[], Clients]) -> None:
        """From now on this site is one of several.

        Args:
            client: Its client id.
            present: Returns the client ids of those that take part, ascending.
        """
        self._client, self._present = client, present

    def forget(self) -> None:
        """From now on this site is alone, as in evaluations."""
        self._present = None

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        return self._lighthouse.rpartition(":")[0]

    @property
    @override
    def main_port(self) -> int:
        return int(self._lighthouse.rpartition(":")[2])

    @staticmethod
    @override
    def detect() -> bool:
        return False

    @override
    def world_size(self) -> int:
        return 1 if self._present is None else len(self._present())

    @override
    def set_world_size(self, size: int) -> None:
        """The membership gives the size."""

    @override
    def global_rank(self) -> int:
        present = () if self._present is None else self._present()
        return present.index(self._client) if self._client in present else 0

    @override
    def set_global_rank(self, rank: int) -> None:
        """The membership gives the number."""

    @override
    def local_rank(self) -> int:
        return 0

    @override
    def node_rank(self) -> int:
        return 0  # each site prepares its own data

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Raise unless this site is one process.

        Raises:
            ConfigurationError: says the right values.
        """
        if (num_devices, num_nodes) != (1, 1):
            raise ConfigurationError(
                "with lighthouse each site starts one process, and no number of sites is fixed: trainer.devices and "
                f"trainer.num_nodes must be 1, got {num_devices} and {num_nodes}"
            )


def elastic_environment(lighthouse: str) -> ElasticEnvironment:
    """The environment of a site of an elastic run.

    Raises:
        ConfigurationError: a launcher has started several processes of this run.
    """
    launched = launched_devices()
    n_launched = launched.get("devices", 1) * launched.get("num_nodes", 1)
    if n_launched > 1:
        raise ConfigurationError(
            f"lighthouse={lighthouse!r}, but a launcher has started {n_launched} processes of this run: start each "
            "site by itself"
        )
    return ElasticEnvironment(lighthouse)
