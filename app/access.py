"""Who may do what: tokens that are kept as hashes, and what one worker tells another.

A token is ``weir.<name>.<secret>``: the name finds the hash, so one guess costs one hash. The
secret has 256 bits, so no guess will do; scrypt stands between a stolen configuration and a secret
that somebody chose by hand.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple, cast, get_args

from app.config import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.config import TokenSettings

#: 16 MiB and 50 ms: what OWASP asks at least of scrypt with p = 1 is n = 2^17; a secret of 256 bits
#: needs no stretching, and a worker has a loop to run.
_N, _R, _P = 1 << 14, 8, 1
#: Wrong tokens that are remembered: who asks again and again with one costs no more hashes.
_KNOWN_MAX: Final = 1_024
#: Milliseconds that the clocks of two workers may differ.
_SKEW_MS: Final = 60_000


class Who(NamedTuple):
    """Somebody who asks."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether this role includes another.

        >>> Who("anna", "feedback").may("read"), Who("anna", "feedback").may("admin")
        (True, False)
        """
        roles = get_args(Role)
        return roles.index(self.role) >= roles.index(role)


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _raw(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def new_token(name: str) -> tuple[str, str]:
    """A new token, and its hash for the configuration."""
    token = f"weir.{name}.{secrets.token_urlsafe(32)}"
    salt = secrets.token_bytes(16)
    return token, f"scrypt${_N}${_R}${_P}${_text(salt)}${_text(_hash(token, salt, _N, _R, _P))}"


def _hash(token: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(token.encode(), salt=salt, n=n, r=r, p=p, dklen=32, maxmem=1 << 28)


def is_token(token: str, hashed: str) -> bool:
    """Whether a hash is that of a token. Cost: 50 ms.

    >>> token, hashed = new_token("anna")
    >>> is_token(token, hashed), is_token(token + "x", hashed)
    (True, False)
    """
    _, n, r, p, salt, expected = hashed.split("$")
    found = _hash(token, _raw(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, _raw(expected))


class Tokens:
    """The tokens of a configuration; what was found of one is remembered by its SHA-256.

    Right ones are remembered apart from wrong ones: however many are guessed, who has a token
    keeps it.
    """

    def __init__(self, tokens: Sequence[TokenSettings]) -> None:
        """Know whose they are."""
        self._by_name = {token.name: token for token in tokens}
        self._right: dict[str, bytes] = {}  # by name
        self._wrong: OrderedDict[bytes, None] = OrderedDict()

    def name_of(self, token: str) -> str | None:
        """Whose a token claims to be; None: nobody has one of that name.

        >>> Tokens([]).name_of("weir.anna.x") is None
        True
        """
        parts = token.split(".", 2)
        is_one = len(parts) == 3 and parts[1] in self._by_name  # noqa: PLR2004
        return parts[1] if is_one else None

    def known(self, token: str) -> tuple[bool, Who | None]:
        """Whether it is known already whose a token is, and whose it is."""
        name, digest = self.name_of(token), hashlib.sha256(token.encode()).digest()
        if name is None or digest in self._wrong:
            return True, None
        if not hmac.compare_digest(self._right.get(name, b""), digest):
            return False, None
        return True, Who(name, self._by_name[name].role)

    def find(self, token: str) -> Who | None:
        """Whose a token is; None: nobody's. Cost: 50 ms where the name is right."""
        name, digest = self.name_of(token), hashlib.sha256(token.encode()).digest()
        if name is None:
            return None
        if is_token(token, self._by_name[name].hash):
            self._right[name] = digest
            return Who(name, self._by_name[name].role)
        self._wrong[digest] = None
        while len(self._wrong) > _KNOWN_MAX:
            self._wrong.popitem(last=False)
        return None


class Seal:
    """What one worker signs and another believes: a request on behalf of somebody.

    All processes of an installation share the key that signs their models; this one is derived
    from it, so a signature of one kind is none of the other.
    """

    def __init__(self, key: bytes) -> None:
        """Derive the key."""
        self._key = hmac.digest(key, b"weir peer", "sha256")

    def sign(self, who: Who, method: str, target: str, body: bytes, now_ms: int) -> str:
        """A header's value, good for a minute.

        >>> seal = Seal(b"key")
        >>> told = seal.sign(Who("anna", "read"), "GET", "/v1/x", b"", 1_000)
        >>> seal.open(told, "GET", "/v1/x", b"", 2_000)
        Who(name='anna', role='read')
        >>> seal.open(told, "POST", "/v1/x", b"", 2_000) is None
        True
        """
        told = f"{_text(who.name.encode())}.{who.role}.{now_ms}"
        return f"{told}.{self._mark(told, method, target, body)}"

    def open(self, header: str, method: str, target: str, body: bytes, now_ms: int) -> Who | None:
        """On whose behalf a worker asks; None: it is no worker of ours, or long ago."""
        told, _, mark = header.rpartition(".")
        expected = self._mark(told, method, target, body)
        if not hmac.compare_digest(mark.encode(), expected.encode()):
            return None
        name, role, at_ms = told.split(".")
        if abs(now_ms - int(at_ms)) > _SKEW_MS:
            return None
        return Who(_raw(name).decode(), cast("Role", role))

    def _mark(self, told: str, method: str, target: str, body: bytes) -> str:
        digest = hashlib.sha256(body).hexdigest()
        signed = f"{told}\n{method}\n{target}\n{digest}".encode()
        return _text(hmac.digest(self._key, signed, "sha256"))
