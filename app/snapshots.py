"""Signed snapshots of a fold: bytes that are opened only after their signature holds.

    WEIR1 | HMAC-SHA256 over the rest, 32 bytes | length, 8 bytes | zstd(pickle)

A pickle can run code, so none is loaded before the signature is verified with the key that
all processes of one installation share, and then only classes of an allow-list are found.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import pickle
import struct
from typing import TYPE_CHECKING, Any, Final

import cramjam

from app.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MAGIC: Final = b"WEIR1"
_SIGNATURE_BYTES: Final = 32
#: 1 GiB: a bound on what a snapshot may inflate to, far above any model with bounded memory.
_INFLATED_MAX: Final = 1 << 30
_LENGTH: Final = struct.Struct("<Q")

#: Classes of these packages may stand in a snapshot...
_PACKAGES: Final = ("app.core.", "app.records.", "river.")
#: ...and these names of others, which numpy and the standard library pickle with.
_NAMES: Final = frozenset(
    {
        ("builtins", "set"),
        ("builtins", "frozenset"),
        ("builtins", "complex"),
        ("builtins", "object"),
        ("builtins", "bytearray"),
        ("builtins", "slice"),
        ("builtins", "range"),
        ("builtins", "dict"),
        ("builtins", "list"),
        ("builtins", "tuple"),
        ("builtins", "int"),
        ("builtins", "float"),
        ("collections", "deque"),
        ("collections", "Counter"),
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("copyreg", "_reconstructor"),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        ("datetime", "timezone"),
        ("random", "Random"),
        ("_codecs", "encode"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.random._pickle", "__randomstate_ctor"),
        ("numpy.random._pickle", "__generator_ctor"),
        ("numpy.random._pickle", "__bit_generator_ctor"),
        ("numpy.random._mt19937", "MT19937"),
        ("numpy.random._pcg64", "PCG64"),
        ("numpy.random.bit_generator", "SeedSequence"),
        ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
        ("functools", "partial"),
        ("math", "log2"),
    }
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return super().find_class(module, name)
        if f"{module}.".startswith(_PACKAGES):
            found = super().find_class(module, name)
            # Only what these packages define, never what they merely import: a dotted name
            # could otherwise walk from any of them to the whole standard library.
            if f"{getattr(found, '__module__', '')}.".startswith(_PACKAGES):
                return found
        msg = f"snapshot holds {module}.{name}; expected only models and their parts"
        raise Refused(msg)


def pack(pickled: bytes) -> bytes:
    """Bytes, made smaller: zstd at its quickest takes 0.08 s for a forest of 18 MB."""
    return _LENGTH.pack(len(pickled)) + bytes(cramjam.zstd.compress(pickled, 1))


def _unpack(body: bytes) -> bytearray:
    """Inverse of ``pack``, into no more memory than the signed length says."""
    length = _LENGTH.unpack_from(body)[0] if len(body) >= _LENGTH.size else -1
    if not 0 <= length <= _INFLATED_MAX:
        msg = f"snapshot inflates to {length} bytes; expected at most {_INFLATED_MAX}"
        raise Refused(msg)
    inflated = bytearray(length)
    try:
        written = cramjam.zstd.decompress_into(body[_LENGTH.size :], inflated)
    except (cramjam.DecompressionError, ValueError, OSError) as error:
        msg = f"snapshot does not inflate: {error}"
        raise Refused(msg) from None
    if written != length:
        msg = f"snapshot inflates to {written} bytes; expected {length}"
        raise Refused(msg)
    return inflated


def seal(state: object, key: bytes) -> bytes:
    """Snapshot of ``state`` as bytes, signed with ``key``.

    >>> unseal(seal({"n": 1}, b"key"), [b"key"])
    {'n': 1}
    """
    body = pack(pickle.dumps(state, protocol=5))
    return _MAGIC + hmac.digest(key, body, hashlib.sha256) + body


def write(path: Path, snapshot: bytes) -> None:
    """Write a snapshot to a file, whole or not at all. Raises Refused."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(snapshot)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise Refused(f"{path}: {error.strerror or error}; expected a file to write") from None


def read(path: Path) -> bytes:
    """The snapshot in a file, not yet verified. Raises Refused."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}; expected a snapshot") from None


def unseal(snapshot: bytes, keys: Iterable[bytes]) -> Any:
    """Return the state in a snapshot that one of ``keys`` signed.

    Raises Refused if it is torn, foreign or holds a class that is not allowed.
    """
    if len(snapshot) < len(_MAGIC) + _SIGNATURE_BYTES or not snapshot.startswith(_MAGIC):
        msg = f"snapshot of {len(snapshot)} bytes is no {_MAGIC.decode()}: it is torn or foreign"
        raise Refused(msg)
    signature = snapshot[len(_MAGIC) :][:_SIGNATURE_BYTES]
    body = snapshot[len(_MAGIC) + _SIGNATURE_BYTES :]
    if not any(hmac.compare_digest(signature, hmac.digest(k, body, hashlib.sha256)) for k in keys):
        msg = "snapshot is not signed with learner.key: it is torn or foreign"
        raise Refused(msg)
    try:
        return _Unpickler(io.BytesIO(_unpack(body))).load()
    except (
        pickle.UnpicklingError,
        AttributeError,
        ImportError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        msg = f"snapshot was written by another version of weir: {error}"
        raise Refused(msg) from error
