"""New versions of a federation, what is remembered of them, and the links that are made from them."""

from __future__ import annotations

import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_parablock.errors import ConfigurationError, IdentityError, RosterError
from lightning_parablock.site_kit import federation
from lightning_parablock.site_kit.changes import changes
from lightning_parablock.site_kit.federation import Layout
from lightning_parablock.site_kit.files import write_whole
from lightning_parablock.site_kit.hub_keys import HUB, HubKeys
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.keys import new_link_keys
from lightning_parablock.site_kit.membership import find_identity, require_joinable
from lightning_parablock.site_kit.memory import Memory
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.wireguard import alias, hub_file, site_files
from tests.site_kit.sites import identities, signed

HUB_AT = "hub.example.org:51820"


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Identity]:
    monkeypatch.setenv("HOME", str(tmp_path))
    return identities(tmp_path / ".lightning-parablock", "abcd")


@pytest.fixture
def first(sites: dict[str, Identity]) -> Roster:
    cards = [sites[name].card for name in "cab"]
    return federation.create("wards", cards, Layout(), (HUB_AT, new_link_keys().public))


def test_a_new_federation_gives_addresses_by_name(first: Roster) -> None:
    assert first.version == 1 and first.previous is None and first.unsigned_by() == ("a", "b", "c")
    assert first.hub is not None and first.hub.address == "10.81.0.1"
    assert [(site.name, site.outer_address, site.inner_address) for site in first.sites] == [
        ("a", "10.81.0.2", "10.82.0.2"),
        ("b", "10.81.0.3", "10.82.0.3"),
        ("c", "10.81.0.4", "10.82.0.4"),
    ]


def test_ranges_can_be_chosen(sites: dict[str, Identity]) -> None:
    cards = [sites[name].card for name in "ab"]
    hub = (HUB_AT, new_link_keys().public)
    roster = federation.create("w", cards, Layout("172.20.1.0/29", "192.168.9.0/24", 5000), hub)
    assert [site.outer_address for site in roster.sites] == ["172.20.1.2", "172.20.1.3"]
    assert [site.inner_address for site in roster.sites] == ["192.168.9.2", "192.168.9.3"]
    for wrong, named in (
        (Layout("10.0.0.0/24", "10.0.0.0/16"), "overlap"),
        (Layout("10.0.0.1/24"), "outer_range must be a range"),
        (Layout("10.0.0.0/30"), "outer_range must be within"),
        (Layout("11.0.0.0/24"), "outer_range must be within"),
        (Layout(inner_range="fd00::/64"), "inner_range must be a range"),
        (Layout(inner_port=0), "inner_port must be a UDP port"),
        (Layout(inner_port=70000), "inner_port must be a UDP port"),
    ):
        with pytest.raises(ConfigurationError, match=named):
            federation.create("w", cards, wrong, hub)


def test_a_range_may_be_too_small(tmp_path: Path) -> None:
    cards = [site.card for site in identities(tmp_path, "abcdef").values()]
    with pytest.raises(ConfigurationError, match=r"outer_range 10\.0\.0\.0/29 has too few addresses"):
        federation.create("w", cards, Layout("10.0.0.0/29"), (HUB_AT, new_link_keys().public))


def test_the_same_card_twice(sites: dict[str, Identity]) -> None:
    with pytest.raises(RosterError, match=r"the site name .* a is there twice"):
        federation.create("w", [sites["a"].card] * 2, Layout(), (HUB_AT, new_link_keys().public))


def test_revoking_makes_a_higher_version_that_has_no_signature(first: Roster, sites: dict[str, Identity]) -> None:
    old = signed(first, {name: sites[name] for name in "abc"})
    new = federation.revoke(old, ["c"])
    assert (new.version, new.previous, new.names) == (2, old.digest.hex(), ("a", "b"))
    assert new.unsigned_by() == ("a", "b") and not new.signatures
    with pytest.raises(RosterError, match="the signature of site a is wrong"):
        new.with_signatures({"a": old.signatures["a"]})
    with pytest.raises(RosterError, match="needs 2 to 250 sites, got 1"):
        federation.revoke(new, ["b"])
    with pytest.raises(RosterError, match="site 'c' is not in version 2"):
        federation.revoke(new, ["c"])


def test_adding_makes_a_higher_version_and_moves_no_site(first: Roster, sites: dict[str, Identity]) -> None:
    new = federation.add(federation.revoke(first, ["b"]), [sites["d"].card])
    assert new.version == 3 and new.names == ("a", "c", "d")
    assert [new.site(name) for name in "ac"] == [first.site(name) for name in "ac"]
    assert (new.site("d").outer_address, new.site("d").inner_address) == ("10.81.0.5", "10.82.0.5")
    with pytest.raises(RosterError, match="site a is in version 1 of federation wards already"):
        federation.add(first, [sites["a"].card])


def test_an_address_is_never_given_again(first: Roster, sites: dict[str, Identity], tmp_path: Path) -> None:
    """Links of a version with c would lead from it to c: a site may have forgotten to open them anew."""
    second = federation.revoke(first, ["c"])
    third = federation.add(second, [sites["d"].card])
    assert (third.site("d").outer_address, third.site("d").inner_address) == ("10.81.0.5", "10.82.0.5")
    card = Identity.create(tmp_path / "new", "c").card
    last = federation.add(federation.revoke(third, ["d"]), [card])
    assert last.site("c").inner_address == "10.82.0.6"
    assert [one.addresses_given for one in (first, second, third, last)] == [0, 4, 4, 5]
    for one in (first, second, third, last):
        assert Roster.parse(one.text) == one
    assert "addresses_given" not in first.text and "\naddresses_given: 4\n" in second.text
    assert replace(second, addresses_given=0).digest != second.digest, "it is signed, too"
    for wrong in ("0", "x", "123456", "-1", "04"):
        with pytest.raises(RosterError, match="addresses_given cannot be"):
            Roster.parse(second.text.replace("addresses_given: 4", f"addresses_given: {wrong}"))


def test_a_range_is_used_up_by_sites_that_are_gone(sites: dict[str, Identity]) -> None:
    cards = {name: sites[name].card for name in "abcd"}
    hub = (HUB_AT, new_link_keys().public)
    roster = federation.create("w", [cards[name] for name in "abc"], Layout("10.0.0.0/29"), hub)
    roster = federation.add(federation.revoke(roster, ["c"]), [cards["d"]])
    roster = federation.add(federation.revoke(roster, ["d"]), [cards["d"]])
    with pytest.raises(ConfigurationError, match=r"outer_range 10\.0\.0\.0/29 has too few addresses .* second time"):
        federation.add(roster, [cards["c"]])


def test_collecting_signatures(first: Roster, sites: dict[str, Identity]) -> None:
    copies = [signed(first, {name: sites[name]}) for name in "abc"]
    federation.collect([first, *copies]).require_signed()
    with pytest.raises(RosterError, match="has version 1 of federation wards, another one version 2"):
        federation.collect([first, federation.revoke(first, ["c"])])
    with pytest.raises(RosterError, match="the files have two different versions 1 of federation wards"):
        federation.collect([copies[0], signed(replace(first, inner_port=5000), {"b": sites["b"]})])


def test_changes_in_words(first: Roster, sites: dict[str, Identity], tmp_path: Path) -> None:
    new = federation.add(federation.revoke(first, ["b"]), [sites["d"].card])
    assert changes(first, new) == ["site b is removed", "site d is new"]
    assert changes(first, first) == []
    reused = replace(new.site("d"), inner_address="10.82.0.3")
    again = replace(new, sites=(*(new.site(name) for name in "ac"), reused))
    assert changes(first, again) == ["site b is removed", "site d is new, at an address that site b had"]
    assert first.hub is not None
    other = Identity.create(tmp_path / "other", "a", "a.example.org:5").card
    moved = replace(first.site("a"), card=other, inner_address="10.82.0.9")
    hub = replace(first.hub, endpoint="new.example.org:5", key=new_link_keys().public, address="10.81.0.99")
    new = replace(first, sites=(moved, *first.sites[1:]), hub=hub, inner_port=5)
    assert changes(first, new) == [
        "site a has other keys",
        "site a has the endpoint a.example.org:5, not None",
        "site a has other addresses",
        "the hub is at new.example.org:5, not hub.example.org:51820",
        "the hub has another key",
        "the hub has the address 10.81.0.99, not 10.81.0.1",
        "inner_port is 5, not 51821",
    ]


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_an_older_version_and_another_of_the_same_number_are_refused(first: Roster, sites: dict[str, Identity]) -> None:
    memory = Memory(sites["a"].folder, "wards")
    assert memory.newest() is None and memory.refuse_older(first) is None
    memory.keep(first)
    second = federation.revoke(first, ["c"])
    memory.keep(second)
    assert memory.newest() == second
    with pytest.raises(RosterError, match="version 1 of federation wards is older than version 2, which is known here"):
        memory.keep(first)
    with pytest.raises(RosterError, match="there are two different versions 2 of federation wards"):
        memory.keep(federation.revoke(first, ["b"]))
    assert memory.newest() == second
    assert Memory(sites["b"].folder, "wards").newest() is None


def test_signatures_that_were_known_are_kept(first: Roster, sites: dict[str, Identity]) -> None:
    memory = Memory(sites["a"].folder, "wards")
    memory.keep(signed(first, {"a": sites["a"]}))
    memory.keep(signed(first, {"b": sites["b"]}))
    newest = memory.newest()
    assert newest is not None and newest.unsigned_by() == ("c",)


def test_what_is_known_already_is_not_written_again(first: Roster, sites: dict[str, Identity]) -> None:
    memory = Memory(sites["a"].folder, "wards")
    memory.keep(signed(first, {"a": sites["a"]}))
    before = (sites["a"].folder / "wards.seen.yaml").stat()
    memory.keep(first)
    assert (sites["a"].folder / "wards.seen.yaml").stat() == before


def test_a_damaged_memory_is_an_error_and_no_new_beginning(first: Roster, sites: dict[str, Identity]) -> None:
    memory = Memory(sites["a"].folder, "wards")
    memory.keep(first)
    path = sites["a"].folder / "wards.seen.yaml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("")
    with pytest.raises(RosterError, match=r"wards\.seen\.yaml, where this site keeps what it has approved: .* empty"):
        memory.refuse_older(first)
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="open to other users"):
        memory.refuse_older(first)


def test_all_that_a_site_checks_before_it_joins(first: Roster, sites: dict[str, Identity], tmp_path: Path) -> None:
    whole = signed(first, {name: sites[name] for name in "abc"})
    assert require_joinable(whole, sites["b"]) == whole.site("b")
    with pytest.raises(RosterError, match="is not signed by c"):
        require_joinable(signed(first, {name: sites[name] for name in "ab"}), sites["b"])
    with pytest.raises(RosterError, match="site 'd' is not in version 1"):
        require_joinable(whole, sites["d"])
    twin = Identity.create(tmp_path / "twin", "b")
    with pytest.raises(RosterError, match="has another card for site b than that of the keys in"):
        require_joinable(whole, twin)
    second = federation.revoke(whole, ["c"])
    second = signed(second, {name: sites[name] for name in "ab"})
    require_joinable(second, sites["b"])
    with pytest.raises(RosterError, match="version 1 of federation wards is older than version 2"):
        require_joinable(whole, sites["b"])


def test_the_keys_are_found_by_the_roster(first: Roster, sites: dict[str, Identity], tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="several sites of this federation have keys here; choose with --keys"):
        find_identity(first, None)
    assert find_identity(first, sites["b"].folder) == sites["b"]
    two = replace(first, sites=first.sites[:2])
    for name in "bcd":
        sites[name].folder.rename(tmp_path / name)
    assert find_identity(two, None) == sites["a"]
    sites["a"].folder.rename(tmp_path / ".lightning-parablock" / "gone")
    with pytest.raises(IdentityError, match=r"has the sites a, b, and none .* where those of gone are"):
        find_identity(two, None)


# --- links ------------------------------------------------------------------------------------------------------------


def hooks(text: str) -> tuple[list[str], list[str]]:
    """Commands of a file: those that follow its start, and those that follow its end."""
    up, down = (re.findall(f"^{name} = (.*)$", text, re.MULTILINE) for name in ("PostUp", "PostDown"))
    return up, down


def without_hooks(text: str) -> str:
    return re.sub(r"(?m)^Post(Up|Down) = .*\n", "", text)


def guarded(addresses: str) -> str:
    """The rule that keeps out packets for the addresses which come over another interface."""
    return f"PREROUTING ! -i %i -d {addresses} -m addrtype ! --src-type LOCAL -j DROP"


def raw(rule: str) -> tuple[str, str]:
    """Commands that add a rule, unless it is there, and remove it."""
    table = "iptables -w -t raw"
    return f"{table} -C {rule} 2>/dev/null || {table} -I {rule}", f"{table} -D {rule} || true"


def test_the_files_of_a_site(first: Roster, sites: dict[str, Identity]) -> None:
    assert first.hub is not None
    b = sites["b"]
    files = site_files(first, first.site("b"), b)
    assert {name: without_hooks(text) for name, text in files.items()} == {
        "wards-outer": f"""\
# Federation wards, version 1: outer layer of site b, to the hub. Made by lightning-parablock.

[Interface]
PrivateKey = {b.outer.private}
Address = 10.81.0.3/32

[Peer]
PublicKey = {first.hub.key}
Endpoint = hub.example.org:51820
AllowedIPs = 10.81.0.0/24
PersistentKeepalive = 15
""",
        "wards-inner": f"""\
# Federation wards, version 1: inner layer of site b, to the other sites. Made by lightning-parablock.

[Interface]
PrivateKey = {b.inner.private}
Address = 10.82.0.3/32
ListenPort = 51821
MTU = 1340

[Peer]
PublicKey = {sites["a"].card.inner_key}
Endpoint = 10.81.0.2:51821
AllowedIPs = 10.82.0.2/32

[Peer]
PublicKey = {sites["c"].card.inner_key}
Endpoint = 10.81.0.4:51821
AllowedIPs = 10.82.0.4/32
""",
    }


def test_a_site_is_closed_to_the_outer_layer_but_for_the_inner_one(first: Roster, sites: dict[str, Identity]) -> None:
    up, down = hooks(site_files(first, first.site("b"), sites["b"])["wards-outer"])
    guard, jump = raw(guarded("10.81.0.0/24")), raw("PREROUTING -i %i -j %i")
    chain = "iptables -w -t raw -A %i"
    assert up == [
        guard[0],
        "iptables -w -t raw -N %i 2>/dev/null || iptables -w -t raw -F %i",
        f"{chain} -s 10.81.0.0/24 -d 10.81.0.3 -p udp --dport 51821 -j RETURN",
        f"{chain} -s 10.81.0.0/24 -d 10.81.0.3 -p tcp ! --syn -j RETURN",
        f"{chain} -s 10.81.0.0/24 -d 10.81.0.3 -p icmp -j RETURN",
        f"{chain} -j DROP",
        jump[0],
        f"ip link set dev %i alias '{alias(first)}'",
    ]
    assert down == [guard[1], jump[1], "iptables -w -t raw -F %i || true", "iptables -w -t raw -X %i || true"]


def test_nothing_is_forwarded_out_of_the_inner_layer(first: Roster, sites: dict[str, Identity]) -> None:
    up, down = hooks(site_files(first, first.site("b"), sites["b"])["wards-inner"])
    guard, own = raw(guarded("10.82.0.0/24")), raw("PREROUTING -i %i ! -d 10.82.0.3 -j DROP")
    assert up == [guard[0], own[0], f"ip link set dev %i alias '{alias(first)}'"]
    assert down == [guard[1], own[1]]


def test_links_say_of_which_version_they_are(first: Roster) -> None:
    assert alias(first) == f"version 1 of federation wards, SHA-256 {first.digest.hex()}"
    second = federation.revoke(first, ["c"])
    longest = replace(second, federation="w23456789", version=999_999_999)
    assert len({alias(first), alias(second), alias(replace(first, inner_port=5))}) == 3
    assert len(alias(longest)) < 256, "Linux keeps no more"


def test_the_hub_has_no_inner_key_and_forwards_between_sites_alone(first: Roster, sites: dict[str, Identity]) -> None:
    assert first.hub is not None
    keys = HubKeys(Path("x"), new_link_keys())
    text = hub_file(first, first.hub, keys)
    assert f"PrivateKey = {keys.link.private}\nAddress = 10.81.0.1/32\nListenPort = 51820\n" in text
    assert re.findall("AllowedIPs = (.*)", text) == ["10.81.0.2/32", "10.81.0.3/32", "10.81.0.4/32"]
    assert re.findall("PublicKey = (.*)", text) == [sites[name].card.outer_key for name in "abc"]
    assert not any(site.card.inner_key in text or site.inner.private in text for site in sites.values())
    up, down = hooks(text)
    guard = raw(guarded("10.81.0.0/24"))
    rules = ("iif %i to 10.81.0.0/24 lookup main priority 9100", "iif %i unreachable priority 9101")
    assert up == [
        guard[0],
        "ip route replace unreachable 10.81.0.0/24 metric 9100",
        *(f"ip rule del {rule} 2>/dev/null || true; ip rule add {rule}" for rule in rules),
        "sysctl -q -w net.ipv4.conf.%i.forwarding=1",
    ]
    assert down == [
        guard[1],
        *(f"ip rule del {rule} || true" for rule in rules),
        "ip route del unreachable 10.81.0.0/24 metric 9100 || true",
    ]


def test_without_a_hub_there_is_one_layer(tmp_path: Path) -> None:
    sites = identities(tmp_path, "abc", "{name}.example.org:5182")
    mesh = federation.create("mesh", [site.card for site in sites.values()], Layout(), None)
    files = site_files(mesh, mesh.site("a"), sites["a"])
    assert list(files) == ["mesh-inner"]
    assert "ListenPort = 5182\n" in files["mesh-inner"] and "MTU" not in files["mesh-inner"]
    up, down = hooks(files["mesh-inner"])
    assert raw(guarded("10.82.0.0/24")) == (up[0], down[0])
    assert "Endpoint = b.example.org:5182\nAllowedIPs = 10.82.0.3/32\n" in files["mesh-inner"]


def test_the_keys_of_the_hub(tmp_path: Path) -> None:
    keys = HubKeys.new(tmp_path / "hub")
    assert not (tmp_path / "hub").exists(), "nothing is written before the roster is made"
    keys.store()
    assert HubKeys.read(tmp_path / "hub") == keys and keys.link.private not in repr(keys)
    with pytest.raises(IdentityError, match="holds the key of a hub already"):
        HubKeys.new(tmp_path / "hub")
    with pytest.raises(IdentityError, match="is there already and is not overwritten"):
        keys.store()
    path = tmp_path / "hub" / HUB
    for text in ("", "[]", "{}", '{"link": 3}', '{"link": "x"}'):
        path.write_text(text)
        with pytest.raises(IdentityError, match=r"the key in .* is malformed"):
            HubKeys.read(tmp_path / "hub")
    path.chmod(0o604)
    with pytest.raises(IdentityError, match="open to other users"):
        HubKeys.read(tmp_path / "hub")
    with pytest.raises(IdentityError, match="holds no key of a hub: run this where federation create was run"):
        HubKeys.read(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(ConfigurationError, match="file cannot be written: No space left on device"):
            write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigurationError, match="is there already and is not overwritten"):
        write_whole(path, "new", is_new=True)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
        write_whole(tmp_path / "none" / "file", "new")
