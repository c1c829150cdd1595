"""The roster of a federation, ``federation.yaml``: who takes part, with which keys, signed by every site."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import yaml

from lightning_parablock.errors import ConfigurationError, RosterError
from lightning_parablock.site_kit.files import read_bounded
from lightning_parablock.site_kit.fingerprint import fingerprint_of
from lightning_parablock.site_kit.keys import SIGNATURE_BYTES, decoded, is_signature
from lightning_parablock.site_kit.plain_yaml import Plain, read_plain
from lightning_parablock.site_kit.roster_checks import check_federation_name, check_numbers, check_parts
from lightning_parablock.site_kit.roster_parts import Hub, RosterSite, fields_of, text_of
from lightning_parablock.system.reading import reading

MOST_ROSTER_BYTES = 256 * 1024
_TAG = b"lightning-parablock roster 1\n"
"""Begins what is signed: no other message of a site begins like this."""
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HOST_NUMBER = re.compile(r"[1-9][0-9]{0,4}")
_FIELDS = ("federation", "version", "previous", "inner_range", "inner_port", "sites", "signatures")
_WITH_HUB = ("hub", "outer_range")
_GIVEN = "addresses_given"
_NONE = "none"
_HEADER = """\
# The roster of a federation. Made by lightning-parablock; a change by hand makes all signatures worthless.
# Every site runs:  lightning-parablock site approve federation.yaml
# and, once all have signed:  lightning-parablock site join federation.yaml
"""


@dataclass(frozen=True)
class Roster:
    """One version of a federation.

    Attributes:
        federation: Its name.
        version: From 1; each change makes a higher one, which all its sites sign.
        previous: Digest of the version that this one was made from, hexadecimal; None for the first one.
        hub: The host that forwards the outer layer; None where all sites are public and there is one layer.
        inner_range: IPv4 addresses of the layer between sites.
        outer_range: IPv4 addresses of the layer that the hub forwards; None without a hub.
        inner_port: UDP port of the inner layer at each site; without a hub, the port of each site's endpoint counts.
        sites: Sorted by name.
        signatures: Ed25519 signatures of :attr:`signed_bytes`, in base64, by site.
        addresses_given: The highest number of a host, within either range, that earlier versions have given: links of
            such a version would still lead from that address to the site that had it. 0 in the first version.

    Raises:
        RosterError: the parts do not fit together, or a signature does not fit.
    """

    federation: str
    version: int
    previous: str | None
    hub: Hub | None
    inner_range: str
    outer_range: str | None
    inner_port: int
    sites: tuple[RosterSite, ...]
    signatures: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    addresses_given: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(sorted(self.sites, key=lambda site: site.name)))
        object.__setattr__(self, "signatures", MappingProxyType(dict(sorted(self.signatures.items()))))
        check_federation_name(self.federation)
        check_numbers(self.version, self.inner_port)
        check_parts(self.hub, self.inner_range, self.outer_range, self.sites)
        for site, signed in self.signatures.items():
            self._check_signature(site, signed)

    @classmethod
    def read(cls, path: Path) -> Roster:
        """The roster in a file, with all signatures in it checked; some may be missing.

        Raises:
            RosterError: the file cannot be read, was altered, or makes no sense; names the file.
        """
        text = read_bounded(path, MOST_ROSTER_BYTES, RosterError)
        try:
            return cls.parse(text)
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> Roster:
        """The roster in a text; see :meth:`read`."""
        with reading("the roster", RosterError):
            try:
                return cls._of_plain(read_plain(text))
            except RosterError:
                raise
            except ConfigurationError as error:  # of a card, an endpoint or a name in it
                raise RosterError(str(error)) from error

    @property
    def text(self) -> str:
        """The file."""
        numbers = {"version": self.version, "inner_port": self.inner_port, _GIVEN: self.addresses_given}
        parts = self._signed_parts()
        plain = {name: numbers.get(name, part) for name, part in parts.items()}  # numbers need no quotes
        said = {**plain, "signatures": dict(self.signatures)}
        return _HEADER + yaml.safe_dump(said, sort_keys=False, width=1000)

    @cached_property
    def signed_bytes(self) -> bytes:
        """What each site signs: all but the signatures, in one spelling whatever the file looks like."""
        said = json.dumps(self._signed_parts(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return _TAG + said.encode("ascii")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of :attr:`signed_bytes`, 32 bytes."""
        return hashlib.sha256(self.signed_bytes).digest()

    @cached_property
    def fingerprint(self) -> str:
        """Six groups of five digits that stand for the digest, to be compared by telephone."""
        return fingerprint_of(self.digest)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites, sorted."""
        return tuple(site.name for site in self.sites)

    def site(self, name: str) -> RosterSite:
        """One site.

        Raises:
            RosterError: the roster has no site of this name.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise RosterError(
            f"site {name!r:.70} is not in version {self.version} of federation {self.federation}, which has "
            f"{', '.join(self.names)}"
        )

    def unsigned_by(self) -> tuple[str, ...]:
        """Names of the sites whose signature is missing."""
        return tuple(name for name in self.names if name not in self.signatures)

    def require_signed(self) -> None:
        """Raise a RosterError unless every site has signed."""
        missing = self.unsigned_by()
        if missing:
            raise RosterError(
                f"version {self.version} of federation {self.federation} is not signed by {', '.join(missing)}: each "
                "of them runs lightning-parablock site approve, and lightning-parablock federation collect puts the "
                "signatures into one file; until then nothing can be started with it"
            )

    def verify(self, site: str, message: bytes, signature: bytes) -> None:
        """Raise a RosterError unless a signature of any message was made by a site of this roster.

        Args:
            site: Name of the site.
            message: What was signed. It must begin with words that no other kind of message begins with.
            signature: 64 bytes.
        """
        key = self.site(site).card.signing_key
        if len(signature) != SIGNATURE_BYTES or not is_signature(key, message, signature):
            raise RosterError(f"the signature of site {site} is wrong: another site made it, or what it signed differs")

    def with_signatures(self, signatures: Mapping[str, str]) -> Roster:
        """The same version with more signatures.

        Raises:
            RosterError: one does not fit.
        """
        return replace(self, signatures={**self.signatures, **signatures})

    def _check_signature(self, site: str, signed: str) -> None:
        with reading(f"the signature of site {site!r:.70}", RosterError):
            made = decoded(signed, SIGNATURE_BYTES)
        try:
            self.verify(site, self.signed_bytes, made)
        except RosterError as error:
            raise RosterError(
                f"{error}. The file was altered after {site} signed it; do not use it, and ask the others for theirs"
            ) from error

    def _signed_parts(self) -> dict[str, Plain]:
        sites: dict[str, Plain] = {site.name: site.as_plain() for site in self.sites}
        hub: dict[str, Plain] = {}
        if self.hub is not None and self.outer_range is not None:
            hub = {"hub": self.hub.as_plain(), "outer_range": self.outer_range}
        given: dict[str, Plain] = {_GIVEN: str(self.addresses_given)} if self.addresses_given else {}
        return {
            "federation": self.federation,
            "version": str(self.version),
            "previous": self.previous or _NONE,
            **hub,
            "inner_range": self.inner_range,
            "inner_port": str(self.inner_port),
            **given,
            "sites": sites,
        }

    @classmethod
    def _of_plain(cls, said: dict[str, Plain]) -> Roster:
        has_hub = "hub" in said
        values = fields_of(said, (*_FIELDS, *_WITH_HUB) if has_hub else _FIELDS, optional=(_GIVEN,))
        sites, signatures = values["sites"], values["signatures"]
        if isinstance(sites, str) or isinstance(signatures, str):
            raise ValueError("'sites' and 'signatures' must be mappings by site")
        previous = _matching("previous", values["previous"], re.compile(f"{_NONE}|{_DIGEST.pattern}"))
        return cls(
            federation=text_of(values["federation"]),
            version=int(_matching("version", values["version"], _VERSION)),
            previous=None if previous == _NONE else previous,
            hub=Hub.of_plain(values["hub"]) if has_hub else None,
            inner_range=text_of(values["inner_range"]),
            outer_range=text_of(values["outer_range"]) if has_hub else None,
            inner_port=int(_matching("inner_port", values["inner_port"], _PORT)),
            sites=tuple(RosterSite.of_plain(name, site, has_hub=has_hub) for name, site in sites.items()),
            signatures={name: text_of(signed) for name, signed in signatures.items()},
            addresses_given=int(_matching(_GIVEN, values[_GIVEN], _HOST_NUMBER)) if _GIVEN in values else 0,
        )


def _matching(name: str, said: Plain, pattern: re.Pattern[str]) -> str:
    text = text_of(said)
    if pattern.fullmatch(text) is None:
        raise ValueError(f"{name} cannot be {text!r:.60}")
    return text
