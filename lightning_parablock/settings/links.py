"""The options that say how messages travel and when a silent client is given up."""

from __future__ import annotations

from typing import Any

from lightning_parablock.checks import above_zero, require, whole
from lightning_parablock.options import OptionGroup, keeps, option, record
from lightning_parablock.settings.ports import PortRange, read_ports

_PAYLOAD_MULTIPLE = 4096


def _check_chunk(name: str, value: Any) -> None:
    whole(_PAYLOAD_MULTIPLE, "bytes a message")(name, value)
    require(value % _PAYLOAD_MULTIPLE == 0, f"{name} must be a multiple of {_PAYLOAD_MULTIPLE}, got {value}")


_port_range = keeps(PortRange)(read_ports)


@record
class LinkOptions(OptionGroup):
    """Links and time limits."""

    exchange_timeout_s: float = option(
        default=300.0,
        kind="path",
        check=above_zero("seconds"),
        help="Seconds without a sign of life after which a client is given up and the run ends with an error. This "
        "concerns clients that freeze or whose link is cut; a client whose process has ended is noticed at once. With "
        "lighthouse, which says who is alive, seconds for which a connection of two members brings no answer of "
        "the other machine: then the members connect again.",
    )
    straggler_timeout_s: float = option(
        default=3600.0,
        kind="path",
        check=above_zero("seconds"),
        help="Seconds to wait for a client that is alive but has not delivered its part of an exchange.",
    )
    heartbeat_s: float = option(
        default=1.0,
        kind="path",
        check=above_zero("seconds"),
        help="Seconds between two signs of life of a client.",
    )
    chunk_bytes: int = option(
        default=1 << 20,
        kind="path",
        check=_check_chunk,
        help="Largest payload of one message before compression, in bytes, a multiple of 4096. Blocks travel in "
        "chunks of at most this size, small blocks in smaller chunks.",
    )
    upload_bps: float | None = option(
        default=None,
        kind="own",
        check=above_zero("bits per second", none="no cap"),
        help="Cap on this client's uploads, in bits per second, for a link that it shares with others; None means no "
        "cap. Messages are sent in bursts of one chunk. Clients may have different values.",
    )
    ports: PortRange | None = option(
        default=None,
        kind="own",
        converter=_port_range,
        help='Range of TCP ports on which this rank accepts connections from other ranks, such as "40000-40099"; None '
        "means any port. Set it where a firewall opens certain ports alone. The only other port in use is that of the "
        "rendezvous, or of the lighthouse of an elastic run, whose sites use three ports of the range each. The kernel "
        "picks ports from its own range, so this range should contain about 100 of those: see docs/sites.md. Ranks may "
        "have different values.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.exchange_timeout_s >= 2 * self.heartbeat_s,
            f"exchange_timeout_s ({self.exchange_timeout_s}) must be at least twice heartbeat_s ({self.heartbeat_s}), "
            "else a healthy client looks silent",
        )
