"""The second part of docs/sites.md, run as it is written: a private federation, and those who are not to get in."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.hosts import address
from lightning_parablock.site_kit.roster import Roster
from tests.network.captures import Capture, names_of, share_found, windows_of
from tests.network.private_sites import HIDDEN, HOME, HUB, LIMIT_S, SITES, STRANGER, PrivateSites, listening_at, number

HUB_OUTER, C_OUTER, A_INNER, B_INNER, C_INNER = "10.81.0.1", "10.81.0.4", "10.82.0.2", "10.82.0.3", "10.82.0.4"
PATHS = [b"mine.jsonl"]
"""Paths that a run tells the other sites."""
CALLER = b"Parablock-Site: a"
KNOCK = """python3 -S -c '
import socket, sys
try:
    socket.create_connection(("{host}", {port}), timeout=3).close()
    print("through")
except OSError as error:
    print("blocked:", error)
'"""
FORGE = """python3 -S -c '
import socket, struct
body = b"forged by a stranger"
udp = struct.pack(">4H", 51821, 51821, 8 + len(body), 0) + body
ends = socket.inet_aton("{source}") + socket.inet_aton("{target}")
packet = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + ends + udp
socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(packet, ("{target}", 0))
'"""
PING = """python3 -S -c '
import socket
ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
ping.settimeout(10)
ping.sendto(bytes([8, 0, 0xF7, 0xFF, 0, 0, 0, 0]), ("{host}", 0))
print("answered by", ping.recvfrom(100)[1][0])
'"""
SERVE = """python3 -S -c '
import socket
server = socket.create_server(("{host}", {port}))
print("listening", flush=True)
while True:
    server.accept()[0].close()
'"""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Generator[PrivateSites]:
    """The machines with open links and a lighthouse, by the page's commands."""
    with PrivateSites.open() as cluster:
        made = PrivateSites(cluster, tmp_path_factory.mktemp("private"))
        for site in SITES:
            made.run(site, made.block(f"private {site}: card"))
            made.give(f"{site}.card", site, HUB)
        as_printed(made, HUB, "private hub: links", made.run(HUB, made.block("private hub: roster")))
        made.run(HUB, made.block("private hub: links"))
        sign(made, SITES)
        for site in SITES:
            as_printed(made, site, f"private {site}: links", made.run(site, made.block("private site: join")))
            made.run(site, made.block(f"private {site}: links"))
        made.run("a", made.block("private a: init"))
        found_together(made.folder("a") / "run.yaml")
        for site, n_rows in zip(SITES, (60, 70, 80), strict=True):
            if site != "a":
                made.give("run.yaml", "a", site)
            made.add_model_and_rows(site, n_rows)
        assert len({made.run(site, made.block("private site: sum")) for site in SITES}) == 1
        made.start(HUB, made.block("private hub: lighthouse")).wait_for_line("lighthouse: listens at", LIMIT_S)
        yield made


def as_printed(sites: PrivateSites, machine: str, label: str, said: str) -> None:
    """The page has the commands that the command before it has printed."""
    for command in sites.block(label).splitlines():
        assert command.replace(HOME, str(sites.folder(machine) / "home")) in said


def sign(sites: PrivateSites, members: tuple[str, ...]) -> None:
    """Every member approves the hub's roster, and gets it back with all signatures."""
    fingerprint = Roster.read(sites.folder(HUB) / "federation.yaml").fingerprint
    for site in members:
        sites.give("federation.yaml", HUB, site)
        said = sites.run(site, sites.block("private site: approval"), said=f"{fingerprint}\n")
        assert f"fingerprint: {fingerprint}" in said
        sites.give("federation.yaml", site, HUB, f"{site}.yaml")
    listed = " ".join(f"{site}.yaml" for site in members)
    sites.run(HUB, sites.block("private hub: signatures").replace("a.yaml b.yaml c.yaml", listed))
    for site in members:
        sites.give("federation.yaml", HUB, site)


def found_together(run: Path) -> None:
    """All sites found the run: it is so short that one which comes a moment later would find it finished."""
    text, n_replaced = re.subn(r"min_clients: 2 ", "min_clients: 3 ", run.read_text())
    assert n_replaced == 1
    run.write_text(text)


def reaches(sites: PrivateSites, machine: str, host: str, port: int) -> bool:
    """Whether a machine can open a TCP connection."""
    said = sites.run(machine, KNOCK.format(host=host, port=port)).strip()
    assert said == "through" or said.startswith("blocked: "), said
    return said == "through"


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What is seen of a run.

    Attributes:
        public: All packets between hosts.
        at_hub: Packets at the hub's interface, which decrypts the outer layer.
        weights: SHA-256 of the model at each site.
        listening: Addresses at which each site listens by TCP in the middle of the run.
        model: The finished model of site a.
    """

    public: bytes
    at_hub: bytes
    weights: dict[str, str]
    listening: dict[str, set[str]]
    model: Path


def watched(sites: PrivateSites, commands: dict[str, str], folder: Path) -> Seen:
    """Run the sites' commands to their end, with captures at both places."""
    folder.mkdir(exist_ok=True)

    public = Capture(sites.cluster.start_at_switch, "br0", folder / "public.pcap")
    at_hub = Capture(lambda argv: sites.start(HUB, " ".join(argv)), "clinic-hub", folder / "hub.pcap")
    hosts = {site: sites.start(site, command) for site, command in commands.items()}
    listening = dict[str, set[str]]()
    for site, host in hosts.items():
        host.wait_for_line("round 0 ", LIMIT_S)
        listening[site] = listening_at(host.pid)
    for host in hosts.values():
        assert host.wait(LIMIT_S) == 0, [each.log_text() for each in hosts.values()]
    runs = {site: max(sites.folder(site).glob(f"runs/*/{site}"), key=lambda run: run.stat().st_mtime) for site in hosts}
    manifests = {site: json.loads((run / "manifest.json").read_text()) for site, run in runs.items()}
    assert all(manifest["state"] == "finished" for manifest in manifests.values())
    weights = {site: manifest["result"]["weights_sha256"] for site, manifest in manifests.items()}
    model = next(iter(runs.values())) / "checkpoints" / "final.ckpt"
    return Seen(public.end(), at_hub.end(), weights, listening, model)


@pytest.fixture(scope="module")
def private(sites: PrivateSites, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The run of the page."""
    return watched(sites, {site: sites.block(f"private {site}: fit") for site in SITES}, tmp_path_factory.mktemp("on"))


@pytest.fixture(scope="module")
def plain(sites: PrivateSites, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The control: two sites that use the outer layer as a VPN, without the roster."""
    options = "--config run.yaml --strategy.min_clients 2"
    commands = {
        site: f"GLOO_SOCKET_IFNAME=clinic-outer lightning-parablock fit {options} --site {site}" for site in HIDDEN
    }
    for site in HIDDEN:
        sites.run(site, "iptables -t raw -I clinic-outer -j RETURN")
    seen = watched(sites, commands, tmp_path_factory.mktemp("off"))
    for site in HIDDEN:
        sites.run(site, "iptables -t raw -D clinic-outer 1")
    return seen


def test_all_sites_finish_with_the_same_weights(private: Seen) -> None:
    assert set(private.weights) == set(SITES) and len(set(private.weights.values())) == 1


def test_sites_listen_at_their_inner_addresses_alone(private: Seen, plain: Seen) -> None:
    assert private.listening == {"a": {A_INNER}, "b": {B_INNER}, "c": {C_INNER}}
    assert plain.listening["a"] != {A_INNER}


def test_the_hub_reads_a_run_that_uses_the_outer_layer_alone(plain: Seen) -> None:
    """Shows that the searches below would find what there is to find."""
    assert share_found(plain.at_hub, list(windows_of(plain.model))) > 0.3
    assert share_found(plain.at_hub, [*names_of(plain.model)]) > 0.3
    assert share_found(plain.at_hub, [*PATHS, CALLER]) == 1


def test_nothing_of_a_private_run_can_be_read_on_the_public_link_or_at_the_hub(plain: Seen, private: Seen) -> None:
    markers = [*windows_of(private.model), *names_of(private.model), *PATHS, CALLER]
    assert share_found(private.public, markers) == 0
    assert share_found(private.at_hub, markers) == 0
    # Both captures hold the run: more bytes than it has exchanged, and at the hub what the lighthouse is told.
    exchanged_bytes = 2 * 3 * private.model.stat().st_size // 2
    assert min(len(private.public), len(private.at_hub)) > exchanged_bytes
    assert b'"site": "a"' in private.at_hub and b'"site": "a"' not in private.public


def test_a_fixed_membership_meets_inside(sites: PrivateSites, tmp_path: Path) -> None:
    sites.run("a", f"mkdir fixed; lightning-parablock init fixed --sites a,b --rendezvous {A_INNER}:29500")
    sites.give("fixed/run.yaml", "a", "b", "fixed.yaml")
    sites.give("fixed/run.yaml", "a", "a", "fixed.yaml")
    commands = {site: sites.block(f"private {site}: fit").replace("run.yaml", "fixed.yaml") for site in HIDDEN}
    seen = watched(sites, commands, tmp_path)
    assert len(set(seen.weights.values())) == 1
    assert seen.listening == {"a": {A_INNER}, "b": {B_INNER}}
    assert share_found(seen.at_hub, [*windows_of(seen.model), *names_of(seen.model)]) == 0


def test_secure_sums_go_through_private_links(sites: PrivateSites, tmp_path: Path) -> None:
    sites.run("a", f"mkdir secure; lightning-parablock init secure --sites a,b,c --rendezvous {A_INNER}:29501")
    for site in SITES:
        sites.give("secure/run.yaml", "a", site, "secure.yaml")
    options = "--strategy.aggregation secure --strategy.uneven_clients shorten --shared nothing"
    commands = {
        site: sites.block(f"private {site}: fit").replace("run.yaml", "secure.yaml").rstrip() + f" {options}\n"
        for site in SITES
    }
    seen = watched(sites, commands, tmp_path)
    assert len(set(seen.weights.values())) == 1
    assert share_found(seen.at_hub, [*windows_of(seen.model), *names_of(seen.model)]) == 0


# --- those who are not to get in --------------------------------------------------------------------------------------


def test_a_stranger_gets_no_link_and_reaches_no_address(sites: PrivateSites) -> None:
    """The stranger is in the same network segment as the hub and site c, and knows all that is public."""
    roster = Roster.read(sites.folder("a") / "federation.yaml")
    assert roster.hub is not None
    private_key = sites.run(STRANGER, "wg genkey 2> warning").strip()
    (sites.folder(STRANGER) / "stranger.conf").write_text(
        f"[Interface]\nPrivateKey = {private_key}\nAddress = 10.81.0.2/32\n\n[Peer]\nPublicKey = {roster.hub.key}\n"
        f"Endpoint = {roster.hub.endpoint}\nAllowedIPs = 10.81.0.0/24, 10.82.0.0/24\nPersistentKeepalive = 1\n"
    )
    sites.run(STRANGER, "chmod 600 stranger.conf; wg-quick up ./stranger.conf")
    for target, port in ((HUB_OUTER, 29510), (C_INNER, 5000)):
        assert not reaches(sites, STRANGER, target, port)
    assert re.fullmatch(r"\S+\t0\n", sites.run(STRANGER, "wg show stranger latest-handshakes"))
    sent_bytes = sites.run(STRANGER, "wg show stranger transfer").split()[2]
    assert int(sent_bytes) > 0  # it has tried
    sites.run(STRANGER, "wg-quick down ./stranger.conf")

    # Without WireGuard: the machines that have the addresses are in reach, and are sent packets for them.
    sites.start("c", SERVE.format(host=C_INNER, port=5000)).wait_for_line("listening", LIMIT_S)
    ways = ((HUB_OUTER, 29510, HUB), (C_INNER, 5000, "c"))
    sites.run(STRANGER, "\n".join(f"ip route add {to} via {address(number(at))}" for to, _, at in ways))
    for target, port, at in ways:
        assert reaches(sites, "a", target, port) and reaches(sites, at, target, port)
        assert not reaches(sites, STRANGER, target, port)
        assert not reaches(sites, STRANGER, address(number(at)), port)


def test_the_hub_reaches_no_inner_address(sites: PrivateSites) -> None:
    """A hub that sends c packets for its inner address, through the outer layer: they are readable, and refused."""
    sites.start("c", SERVE.format(host=C_INNER, port=5001)).wait_for_line("listening", LIMIT_S)
    key = Roster.read(sites.folder("a") / "federation.yaml").site("c").card.outer_key
    allow = "wg set clinic-hub peer '{key}' allowed-ips {ips}"
    sites.run(HUB, allow.format(key=key, ips=f"10.81.0.4/32,{C_INNER}/32"))
    sites.run(HUB, f"ip route add {C_INNER} dev clinic-hub")
    assert reaches(sites, "a", C_INNER, 5001)
    assert not reaches(sites, HUB, C_INNER, 5001)
    sites.run(HUB, f"ip route del {C_INNER} dev clinic-hub")
    sites.run(HUB, allow.format(key=key, ips="10.81.0.4/32"))


def test_the_outer_layer_opens_no_service_of_a_site(sites: PrivateSites) -> None:
    """What listens at all addresses of c is reached by a in the inner layer, and by nobody in the outer one."""
    sites.start("c", SERVE.format(host="0.0.0.0", port=5002)).wait_for_line("listening", LIMIT_S)
    assert f"answered by {C_OUTER}" in sites.run(HUB, PING.format(host=C_OUTER))
    assert reaches(sites, "a", C_INNER, 5002)
    assert not reaches(sites, HUB, C_OUTER, 5002) and not reaches(sites, "a", C_OUTER, 5002)
    sites.run("c", "iptables -t raw -I clinic-outer -p tcp --dport 5002 -j RETURN")  # for a lighthouse at c
    assert reaches(sites, HUB, C_OUTER, 5002) and reaches(sites, "a", C_OUTER, 5002)
    sites.run("c", "iptables -t raw -D clinic-outer 1")


def test_a_hub_whose_firewall_drops_what_it_forwards(sites: PrivateSites) -> None:
    sites.start("c", SERVE.format(host=C_INNER, port=5003)).wait_for_line("listening", LIMIT_S)
    sites.run(HUB, "iptables -P FORWARD DROP")
    assert reaches(sites, "a", HUB_OUTER, 29510) and not reaches(sites, "a", C_INNER, 5003)
    sites.run(HUB, sites.block("private hub: forwarding"))
    assert reaches(sites, "a", C_INNER, 5003)
    sites.run(HUB, "iptables -P FORWARD ACCEPT; iptables -F FORWARD")


def test_the_hub_sends_packets_for_no_site_nowhere(sites: PrivateSites) -> None:
    ask = "ip route get {} from 10.81.0.2 iif clinic-hub"
    sites.run(HUB, f"ip route add default via {address(number(STRANGER))}")
    assert "dev clinic-hub" in sites.run(HUB, ask.format(C_OUTER))
    assert "No route to host" in sites.run(HUB, ask.format("10.81.0.99"), status=2)
    sites.run(HUB, "ip route del default")


def test_the_segment_of_the_hub_gets_nothing_into_the_links(sites: PrivateSites, tmp_path: Path) -> None:
    """Although the hub forwards for all of its interfaces, and the packets say that they are from site a."""
    sites.run(HUB, "sysctl -q -w net.ipv4.ip_forward=1")
    sites.run(STRANGER, f"ip route replace {C_OUTER} via {address(number(HUB))}")
    rule = "PREROUTING ! -i clinic-hub -d 10.81.0.0/24 -m addrtype ! --src-type LOCAL -j DROP"

    def forwarded(name: str) -> bool:
        at_hub = Capture(lambda argv: sites.start(HUB, " ".join(argv)), "clinic-hub", tmp_path / name)
        sites.run(STRANGER, FORGE.format(source="10.81.0.2", target=C_OUTER))
        sites.run(HUB, PING.format(host=C_OUTER))
        while bytes([8, 0, 0xF7, 0xFF]) not in (tmp_path / name).read_bytes():  # it came later, and is in the file
            time.sleep(0.05)
        return b"forged by a stranger" in at_hub.end()

    assert not forwarded("guarded")
    sites.run(HUB, f"iptables -t raw -D {rule}")
    assert forwarded("control")
    sites.run(HUB, f"iptables -t raw -I {rule}; sysctl -q -w net.ipv4.ip_forward=0")
    sites.run(STRANGER, f"ip route del {C_OUTER}")


def test_links_of_a_hub_that_could_not_be_opened_leave_nothing_in_the_way(sites: PrivateSites) -> None:
    conf = ".lightning-parablock/clinic-hub/clinic-hub.conf"
    sites.give(f"home/{conf}", HUB, STRANGER, "clinic-hub.conf")
    sites.run(STRANGER, "mkdir none; printf '#!/bin/sh\nexit 1\n' > none/iptables; chmod +x none/iptables")
    sites.run(STRANGER, "PATH=$PWD/none:$PATH wg-quick up ./clinic-hub.conf", status=1)
    assert "clinic-hub" not in sites.run(STRANGER, "ip rule show; ip route show type unreachable")
    sites.run(STRANGER, "ip rule add iif clinic-hub unreachable priority 9101; wg-quick up ./clinic-hub.conf")
    assert sites.run(STRANGER, "ip rule show").count("clinic-hub") == 2
    sites.run(STRANGER, "wg-quick down ./clinic-hub.conf")
    assert sites.run(STRANGER, "ip rule show; ip route show type unreachable; iptables -t raw -S").count("81.0") == 0


def test_a_roster_that_the_hub_has_changed_is_refused(sites: PrivateSites) -> None:
    path = sites.folder("a") / "federation.yaml"
    signed = path.read_text()
    of_b, of_c = (Roster.read(path).site(name).inner_address for name in ("b", "c"))
    try:
        path.write_text(signed.replace(of_b, "0.0.0.0").replace(of_c, of_b).replace("0.0.0.0", of_c))
        said = sites.run("a", sites.block("private site: join"), status=2)
        assert "federation.yaml: the signature of site a is wrong" in said
        path.write_text(re.sub(r"(?m)^  b: \S+==\n", "", signed))
        assert "is not signed by b" in sites.run("a", sites.block("private site: join"), status=2)
    finally:
        path.write_text(signed)


def test_a_revoked_site_cannot_come_back(sites: PrivateSites) -> None:
    assert reaches(sites, "c", HUB_OUTER, 29510)
    sites.run(HUB, sites.block("private hub: revocation"))
    assert not reaches(sites, "c", HUB_OUTER, 29510)

    first = (sites.folder("a") / "federation.yaml").read_text()
    staying = ("a", "b")
    sign(sites, staying)
    for site in staying:
        again = sites.block("private a: links again").replace("/a/", f"/{site}/")
        said = sites.run(site, sites.block("private site: join"))
        assert again.replace(HOME, str(sites.folder(site) / "home")) in re.sub("(?m)^ +", "", said)
        said = sites.run(site, sites.block(f"private {site}: fit"), status=1)
        assert "the link clinic-outer runs with version 1 of federation clinic, and the federation file of" in said
        sites.run(site, again)
    sites.start("b", SERVE.format(host=B_INNER, port=5000)).wait_for_line("listening", LIMIT_S)
    assert reaches(sites, "a", B_INNER, 5000) and reaches(sites, "a", HUB_OUTER, 29510)
    assert not reaches(sites, "c", B_INNER, 5000)

    given_up = sites.block("private c: fit").strip() + " --strategy.rejoin_timeout_s 12"
    assert f"the lighthouse at {HUB_OUTER}:29510, which has not answered yet" in sites.run("c", given_up, status=1)
    sites.give("federation.yaml", "a", "c")
    said = sites.run("c", sites.block("private site: join"), status=2)
    assert "version 2 of federation clinic has the sites a, b, and none of them has keys in" in said
    (sites.folder("a") / "federation.yaml").write_text(first)
    said = sites.run("a", sites.block("private site: join"), status=2)
    assert "version 1 of federation clinic is older than version 2" in said
