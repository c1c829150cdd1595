"""``lightning-parablock site`` and ``federation``: three people with mail, and what goes wrong between them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_parablock.cli import main
from lightning_parablock.cli.commands import federation_change, federation_create, site_init
from lightning_parablock.masking.submissions import Submissions
from lightning_parablock.site_kit import hub_keys, identity, memory
from lightning_parablock.site_kit.files import write_whole
from lightning_parablock.site_kit.hub_keys import HubKeys
from lightning_parablock.site_kit.roster import Roster

HUB = ("--hub-endpoint", "hub.example.org:51820")


class People:
    """A folder with a home for each person; files are handed over by name."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._root, self._patch, self._capsys = root, monkeypatch, capsys
        for name in ("hub", *"abc"):
            (root / name).mkdir()

    def at(self, who: str, *words: str, code: int = 0) -> str:
        """Run a command as a person, and return what it prints, or its error."""
        self._patch.chdir(self._root / who)
        self._patch.setenv("HOME", str(self._root / who))
        try:
            found: object = main(list(words))
        except SystemExit as ended:
            found = ended.code
        said = self._capsys.readouterr()
        assert found == code, said.err
        assert code != 2 or (said.err.startswith("error: ") and len(said.err.splitlines()) == 1), said.err
        return said.err if code else said.out

    def send(self, who: str, to: str, name: str = "federation.yaml", under: str | None = None) -> None:
        shutil.copy(self._root / who / name, self._root / to / (under or name))

    def file(self, who: str, name: str = "federation.yaml") -> Path:
        return self._root / who / name

    def fingerprint(self, who: str) -> str:
        return Roster.read(self.file(who)).fingerprint

    def keys(self, who: str) -> Path:
        return self._root / who / ".lightning-parablock" / who

    def sign(self, *who: str) -> None:
        """The hub's file to each of them; signed; and back into the hub's file."""
        for name in who:
            self.send("hub", name)
            self.at(name, "site", "approve", "federation.yaml", "--fingerprint", self.fingerprint("hub"))
            self.send(name, "hub", under=f"{name}.yaml")
        self.at("hub", "federation", "collect", "federation.yaml", *(f"{name}.yaml" for name in who))
        for name in who:
            self.send("hub", name)


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> People:
    found = People(tmp_path, monkeypatch, capsys)
    for name in "abc":
        found.at(name, "site", "init", name, "--card", f"{name}.card")
        found.send(name, "hub", f"{name}.card")
    return found


@pytest.fixture
def created(people: People) -> People:
    people.at("hub", "federation", "create", "wards", *HUB, "--cards", "a.card", "b.card", "c.card")
    return people


def test_from_three_cards_to_links(created: People) -> None:
    created.sign(*"abc")
    said = created.at("b", "site", "join", "federation.yaml")
    folder = created.keys("b")
    assert f"  wg-quick up {folder}/wards-outer.conf\n  wg-quick up {folder}/wards-inner.conf\n" in said
    assert "ping -c 3 10.82.0.4   # site c" in said and "10.82.0.3" not in said
    assert "fit --config run.yaml --strategy.federation federation.yaml --site b\n" in said
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.conf")}
    assert modes == {"wards-outer.conf": 0o600, "wards-inner.conf": 0o600}
    hub = created.file("hub", ".lightning-parablock/wards-hub/wards-hub.conf")
    assert hub.read_text().count("[Peer]") == 3 and stat.S_IMODE(hub.stat().st_mode) == 0o600


def test_a_new_site_has_a_record_in_which_there_is_no_contribution(created: People) -> None:
    record = Submissions(created.keys("a"))
    assert not record.was_missing
    assert record.begin(0, "0" * 64) == b"", "its first run draws what its seed says"


def test_the_file_may_go_from_site_to_site(created: People) -> None:
    created.send("hub", "a")
    fingerprint = created.fingerprint("hub")
    for who, to, missing in (("a", "b", "b, c"), ("b", "c", "c")):
        said = created.at(who, "site", "approve", "federation.yaml", "--fingerprint", fingerprint)
        assert f"Not signed yet by {missing}." in said
        created.send(who, to)
    said = created.at("c", "site", "approve", "federation.yaml", "--fingerprint", fingerprint.replace(" ", ""))
    assert "All sites have signed it." in said
    created.at("c", "site", "join", "federation.yaml")


def test_private_keys_are_printed_nowhere_and_are_in_no_file_that_is_sent(created: People) -> None:
    created.sign(*"abc")
    keys = [line.split('"')[3] for line in (created.keys("a") / "keys.json").read_text().splitlines() if "=" in line]
    assert len(keys) == 3
    sent = created.file("a").read_text() + created.file("a", "a.card").read_text()
    printed = created.at("a", "site", "join", "federation.yaml")
    assert not any(key in sent + printed for key in keys)


def test_what_is_shown_before_signing(created: People) -> None:
    created.sign(*"abc")
    created.at("hub", "federation", "revoke", "federation.yaml", "c")
    created.send("hub", "a")
    said = created.at("a", "site", "approve", "federation.yaml", "--fingerprint", created.fingerprint("a"))
    assert said.splitlines()[:7] == [
        "federation wards, version 2",
        "hub at hub.example.org:51820: 10.81.0.1, forwards between all sites",
        "  site      outer      inner      endpoint  signature",
        "  a (here)  10.81.0.2  10.82.0.2  -         -",
        "  b         10.81.0.3  10.82.0.3  -         -",
        "changes since version 1, the newest that this site knows:",
        "  site c is removed",
    ]
    assert "has signed federation.yaml already" in created.at("a", "site", "approve", "federation.yaml")


def test_a_version_that_was_made_from_another_one_is_pointed_out(created: People) -> None:
    created.sign(*"abc")
    created.at("hub", "federation", "revoke", "federation.yaml", "c")
    created.at("hub", "federation", "add", "federation.yaml", "--cards", "c.card")
    created.send("hub", "a")
    said = created.at("a", "site", "approve", "federation.yaml", "--fingerprint", created.fingerprint("a"))
    assert "  site c has other addresses\n  it was not made from that version 1: ask why before you sign\n" in said


def test_a_revoked_site_is_out_and_cannot_come_back(created: People) -> None:
    created.sign(*"abc")
    for name in "abc":
        created.at(name, "site", "join", "federation.yaml")
    created.send("a", "a", under="old.yaml")
    said = created.at("hub", "federation", "revoke", "federation.yaml", "c")
    assert "version 2, sites a, b\n" in said and "wg-quick down" in said
    hub = created.file("hub", ".lightning-parablock/wards-hub/wards-hub.conf")
    assert hub.read_text().count("[Peer]") == 2
    created.send("hub", "a")
    assert "version 2 of federation wards is not signed by a, b" in created.at(
        "a", "site", "join", "federation.yaml", code=2
    )
    created.sign("a", "b")
    said = created.at("a", "site", "join", "federation.yaml")
    assert "start the links again" in said and "wg-quick down" in said
    assert (created.keys("a") / "wards-inner.conf").read_text().count("[Peer]") == 1
    assert "version 1 of federation wards is older than version 2" in created.at(
        "a", "site", "join", "old.yaml", code=2
    )
    assert "is older than version 2" in created.at("a", "site", "approve", "old.yaml", code=2)
    created.send("hub", "c")
    for command in ("approve", "join"):
        said = created.at("c", "site", command, "federation.yaml", code=2)
        assert "has the sites a, b, and none of them has keys in" in said and "where those of c are" in said
    assert "site 'c' is not in version 2" in created.at(
        "c", "site", "join", "federation.yaml", "--keys", str(created.keys("c")), code=2
    )


def test_the_hub_makes_no_second_version_from_an_old_file(created: People) -> None:
    created.send("hub", "hub", under="old.yaml")
    created.at("hub", "federation", "revoke", "federation.yaml", "c")
    before = created.file("hub", "old.yaml").read_bytes()
    said = created.at("hub", "federation", "revoke", "old.yaml", "b", code=2)
    assert "version 1 of federation wards is older than version 2" in said
    assert created.file("hub", "old.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [("hub.example", "bad.example"), ("version: 1", "version: 2"), ("10.82.0.3", "10.82.0.7"), ("wards", "words")],
)
def test_a_roster_that_the_hub_has_altered(created: People, old: str, new: str) -> None:
    created.sign(*"abc")
    path = created.file("a")
    path.write_text(path.read_text().replace(old, new))
    for command in ("approve", "join"):
        said = created.at("a", "site", command, "federation.yaml", code=2)
        assert "the signature of site a is wrong" in said and "altered after a signed it" in said
    assert not list(created.keys("a").glob("*.conf"))


def test_a_hub_that_replaces_a_card_is_found_by_the_fingerprint(created: People) -> None:
    created.at("hub", "site", "init", "b", "--card", "own.card")
    people_file = created.file("hub")
    theirs, own = (created.file("hub", f"{name}.card").read_text().strip() for name in ("b", "own"))
    true = created.fingerprint("hub")
    people_file.write_text(people_file.read_text().replace(theirs, own))
    created.send("hub", "a")
    said = created.at("a", "site", "approve", "federation.yaml", "--fingerprint", true, code=2)
    assert "the fingerprint differs from that of this file" in said and "nothing was signed" in said
    created.send("hub", "b")
    said = created.at("b", "site", "approve", "federation.yaml", "--fingerprint", created.fingerprint("b"), code=2)
    assert "has another card for site b than that of the keys in" in said
    assert Roster.read(created.file("a")).signatures == {}


@pytest.mark.parametrize(
    ("typed", "code", "named"),
    [
        (None, 0, "has signed federation.yaml"),
        ("12345 12345 12345 12345 12345 12345\n", 2, "the fingerprint differs"),
        ("12345\n", 2, "a fingerprint is 6 groups of 5 digits, all of them; got '12345'; nothing was signed"),
        ("yes\n", 2, "all of them; got 'yes'"),
        ("", 2, "nothing was signed: no fingerprint was given; scripts use --fingerprint"),
    ],
)
def test_the_question(
    created: People, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str | None, code: int, named: str
) -> None:
    created.send("hub", "a")
    answer = tmp_path / "answer"
    answer.write_text(f"{created.fingerprint('a')}\n" if typed is None else typed)
    with answer.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert named in created.at("a", "site", "approve", "federation.yaml", code=code)
    assert bool(Roster.read(created.file("a")).signatures) == (code == 0)
    assert (created.keys("a") / "wards.seen.yaml").exists() == (code == 0)


def test_ctrl_c_at_the_question_signs_nothing(created: People, tmp_path: Path) -> None:
    created.send("hub", "a")
    before = created.file("a").read_bytes()
    words = [sys.executable, "-m", "lightning_parablock", "site", "approve", str(created.file("a"))]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, words, {**os.environ, "HOME": str(tmp_path / "a")})
    shown = b""
    while b"sign nothing): " not in shown:
        shown += os.read(terminal, 1000)
    while b"nothing was signed" not in shown:
        os.write(terminal, b"\x03")  # again and again: it has no effect in the moment before the question waits
        while select.select([terminal], [], [], 3)[0] and b"nothing was signed" not in shown:
            shown += os.read(terminal, 1000)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(terminal)
    assert b"Traceback" not in shown and created.file("a").read_bytes() == before


def test_where_all_sites_are_public_there_is_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    people = People(tmp_path, monkeypatch, capsys)
    for name in "ab":
        people.at(name, "site", "init", name, "--card", f"{name}.card", "--endpoint", f"{name}.example.org:51820")
        people.send(name, "hub", f"{name}.card")
    said = people.at("hub", "federation", "create", "mesh", "--cards", "a.card", "b.card")
    assert "hub" not in said and not (tmp_path / "hub" / ".lightning-parablock").exists()
    people.sign("a", "b")
    said = people.at("a", "site", "join", "federation.yaml")
    assert "mesh-inner.conf" in said and "outer" not in said
    assert "The other sites reach this one at a.example.org:51820: its UDP port must be open.\n" in said
    people.at("hub", "site", "init", "c", "--card", "c.card")
    said = people.at("hub", "federation", "add", "federation.yaml", "--cards", "c.card", code=2)
    assert "without a hub every site needs a public endpoint, and the card of c has none" in said


def test_keys_in_another_folder(people: People, tmp_path: Path) -> None:
    people.at("a", "site", "init", "x", "--keys", "elsewhere", "--card", "x.card")
    people.send("a", "hub", "x.card")
    words = ("--cards", "x.card", "b.card", "--keys", "hubs-own", "--output", "two.yaml")
    people.at("hub", "federation", "create", "two", *HUB, *words)
    people.send("hub", "a", "two.yaml", under="federation.yaml")
    fingerprint = people.fingerprint("a")
    said = people.at("a", "site", "approve", "federation.yaml", "--fingerprint", fingerprint, code=2)
    assert "none of them has keys in" in said
    keys = ("--keys", "elsewhere")
    people.at("a", "site", "approve", "federation.yaml", "--fingerprint", fingerprint, *keys)
    people.send("a", "b")
    people.at("b", "site", "approve", "federation.yaml", "--fingerprint", fingerprint)
    people.send("b", "a")
    said = people.at("a", "site", "join", "federation.yaml", *keys)
    assert "--strategy.federation federation.yaml --strategy.keys elsewhere --site x\n" in said
    assert "holds no key of a hub" in people.at("hub", "federation", "revoke", "two.yaml", "x", code=2)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("site", "no command of site was given; choose init, approve, join"),
        ("site aprove", "site has no command 'aprove'; did you mean 'approve'?"),
        ("federation zzz", "federation has no command 'zzz'; choose create, collect, add, revoke"),
        ("site init", "NAME must be given; see --help"),
        ("site init d --crad x", "option --crad is not known; did you mean --card?"),
        ("federation create w --hub-endpont x --cards a.card", "did you mean --hub-endpoint?"),
        ("federation create w", "--cards must be given"),
        ("federation create", "NAME and --cards must be given"),
        ("federation collect federation.yaml", "COPY must be given"),
        ("site join", "FILE must be given"),
        ("site join nowhere.yaml", "nowhere.yaml cannot be read: No such file"),
        ("site join a.card", "a.card: the roster is malformed"),
        ("site init a --endpoint h:1", "holds the keys of site a already, without an endpoint; they are not over"),
        ("site init d --keys .lightning-parablock/a", "holds the keys of site a already"),
        ("site init a.b/c", "site must be a name of 1 to 64 letters"),
        ("site init ..", "site must be a name of 1 to 64 letters"),
        ("site init d --endpoint nowhere", "endpoint must be host:port"),
        ("site init d --card a.card", "card a.card is there already and is not overwritten"),
        ("site init d --card no/folder/d.card", "there is no folder"),
        ("federation create Wards --cards a.card --hub-endpoint h:1", "must have a name of 1 to 9 lower-case letters"),
        ("federation create w --cards a.card --hub-endpoint h:1", "needs 2 to 250 sites, got 1"),
        ("federation create w --cards a.card a.card --hub-endpoint h:1", "is there twice"),
        ("federation create w --cards a.card no.card --hub-endpoint h:1", "no.card cannot be read: No such file"),
        ("federation create w --cards a.card --hub-endpoint h", "hub-endpoint must be host:port"),
        ("federation create w --cards a.card --hub-endpoint h:1 --output /", "output / is a folder; name a file"),
        ("federation create w --cards a.card --hub-endpoint h:1 --output a.card", "a.card is there already"),
        ("federation create w --cards a.card --hub-endpoint h:1 --outer-range x", "outer_range must be a range"),
    ],
)
def test_mistakes(people: People, words: str, named: str) -> None:
    before = sorted(people.file("a", ".").rglob("*"))
    assert named in people.at("a", *words.split(), code=2)
    assert sorted(people.file("a", ".").rglob("*")) == before, "a mistake leaves nothing behind"


def test_a_federation_file_is_not_overwritten_and_its_hub_keeps_its_key(created: People) -> None:
    words = ("federation", "create", "wards", *HUB, "--cards", "a.card", "b.card")
    assert "federation.yaml is there already and is not overwritten" in created.at("hub", *words, code=2)
    said = created.at("hub", *words, "--output", "new.yaml", code=2)
    assert "holds the key of a hub already, which is not overwritten" in said
    assert not created.file("hub", "new.yaml").exists()


# --- commands that were cut short -------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


def cut_short(people: People, who: str, after: int, *words: str) -> bool:
    """Run a command that ends before it would write another file; returns whether it was so."""
    n_written = 0

    def dying(path: Path, text: str, **options: Any) -> None:
        nonlocal n_written
        if n_written == after:
            raise Killed
        n_written += 1
        write_whole(path, text, **options)

    with pytest.MonkeyPatch.context() as patch:
        for module in (federation_create, federation_change, hub_keys, identity, memory, site_init):
            patch.setattr(module, "write_whole", dying)
        try:
            people.at(who, *words)
        except Killed:
            return True
    return False


def state(people: People) -> list[str]:
    """All that the hub's commands have written, but for its key."""
    folder = people.file("hub", ".lightning-parablock/wards-hub")
    files = (people.file("hub"), folder / "wards-hub.conf", folder / "wards.seen.yaml")
    return [re.sub("PrivateKey = .*|key: .*|previous: .*", "", file.read_text()) for file in files]


@pytest.mark.parametrize("after", range(4))
def test_a_creation_that_was_cut_short_is_given_again(people: People, after: int) -> None:
    words = ("federation", "create", "wards", *HUB, "--cards", "a.card", "b.card", "c.card")
    assert cut_short(people, "hub", after, *words)
    said = people.at("hub", *words)
    assert "wrote federation.yaml: wards, version 1, sites a, b, c\n" in said and "wg-quick up" in said
    hub = Roster.read(people.file("hub")).hub
    assert hub is not None
    assert hub.key == HubKeys.read(people.file("hub", ".lightning-parablock/wards-hub")).link.public
    federation, links, seen = state(people)
    assert federation == seen and links.count("[Peer]") == 3
    people.sign(*"abc")
    assert "is there already" in people.at("hub", *words, code=2), "it is finished"


def test_a_creation_is_not_taken_for_another_one(people: People) -> None:
    words = ("federation", "create", "wards", *HUB, "--cards", "a.card", "b.card")
    assert cut_short(people, "hub", 2, *words)
    before = people.file("hub").read_bytes()
    assert "federation.yaml is there already" in people.at("hub", *words, "c.card", code=2)
    assert people.file("hub").read_bytes() == before


@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize("words", ["revoke federation.yaml c", "add federation.yaml --cards d.card"])
def test_a_change_that_was_cut_short_is_given_again(created: People, words: str, after: int) -> None:
    created.at("hub", "site", "init", "d", "--card", "d.card")
    command = ("federation", *words.split())
    assert cut_short(created, "hub", after, *command)
    said = created.at("hub", *command)
    sites = "a, b" if "revoke" in words else "a, b, c, d"
    assert f"wrote federation.yaml: wards, version 2, sites {sites}\n" in said
    federation, links, seen = state(created)
    assert federation == seen and links.count("[Peer]") == len(sites.split())


def test_another_change_follows_one_that_was_cut_short(created: People) -> None:
    assert cut_short(created, "hub", 1, "federation", "revoke", "federation.yaml", "c")
    said = created.at("hub", "federation", "add", "federation.yaml", "--cards", "c.card")
    assert "version 3, sites a, b, c\n" in said
    federation, links, seen = state(created)
    assert federation == seen and links.count("[Peer]") == 3


@pytest.mark.parametrize("after", [1, 2])
def test_a_card_that_was_not_written_is_printed_by_the_same_command(people: People, after: int) -> None:
    words = ("site", "init", "x", "--card", "x.card")
    assert cut_short(people, "a", after, *words)
    keys = people.file("a", ".lightning-parablock/x/keys.json").read_bytes()
    said = people.at("a", *words)
    assert "keys of site x, which were there before: " in said
    assert people.file("a", "x.card").read_text() in said
    assert people.file("a", ".lightning-parablock/x/keys.json").read_bytes() == keys
    assert people.file("a", "x.card").read_text() in people.at("a", "site", "init", "x")


def test_a_site_that_has_approved_a_version_is_told_what_it_waits_for(created: People) -> None:
    created.sign(*"abc")
    created.send("a", "a", under="old.yaml")
    created.at("hub", "federation", "revoke", "federation.yaml", "c")
    created.send("hub", "a")
    created.at("a", "site", "approve", "federation.yaml", "--fingerprint", created.fingerprint("a"))
    said = created.at("a", "site", "join", "old.yaml", code=2)
    assert "is older than version 2, which this site has approved, and which b had not signed when it was kept" in said
    assert "wards.seen.yaml: nothing can be started before all have signed it" in said
    said = created.at("a", "site", "join", "federation.yaml", code=2)
    assert "version 2 of federation wards is not signed by b: " in said and "until then nothing can be started" in said
    created.sign("a", "b")
    created.at("a", "site", "join", "federation.yaml")
    assert "which is known here and kept in" in created.at("a", "site", "join", "old.yaml", code=2)


@pytest.mark.parametrize("group", ["site", "federation"])
def test_help_of_a_group(capsys: pytest.CaptureFixture[str], group: str) -> None:
    for word in ("-h", "--help"):
        with pytest.raises(SystemExit) as ended:
            main([group, word])
        said = capsys.readouterr().out
        assert ended.value.code == 0 and said.startswith(f"usage: lightning-parablock {group} COMMAND")
