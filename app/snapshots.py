"""Signed snapshots of a fold: bytes that are opened only after their signature holds.

    WEIR2 | HMAC-SHA256 over the rest, 32 bytes | head's length, 4 bytes | head (JSON) | zstd

A pickle can run code, so none is loaded before the signature is verified with the key that
all processes of one installation share, and then only classes of an allow-list are found. The
head says what the snapshot is of, so that most can be passed over without being opened.

What is compressed is the arrays, then the pickle that refers to them. Of each array the first
bytes of all its numbers come first, then the second ones: numbers that are alike have equal high
bytes, and a forest's examples take half the room.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import pickle
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import cramjam
import msgspec
import numpy as np

from app.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MAGIC: Final = b"WEIR2"
_EARLIER: Final = b"WEIR1"
_SIGNATURE_BYTES: Final = 32
#: 1 GiB: a bound on what a snapshot may inflate to, far above any model with bounded memory.
_INFLATED_MAX: Final = 1 << 30
_LENGTH: Final = struct.Struct("<I")
#: zstd at its quickest takes 0.02 s for a forest with 44,000 examples behind it.
_LEVEL: Final = 1

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


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot says of what is in it."""

    kind: str = ""
    format: int = 0
    position: int = -1
    digest: str = ""
    rebuilt: int = -1  # as ``Learner.rebuilt``
    schema: str = ""  # of the features
    told: dict[str, str] = {}  # as ``Learner.told``
    milestones: dict[int, str] = {}  # as ``Trail.milestones``


class _Head(msgspec.Struct, frozen=True):
    """What is compressed: bytes and bytes a number of each array, bytes of the pickle."""

    about: About
    arrays: list[tuple[int, int]]
    pickled: int


class Frozen(NamedTuple):
    """A state as it was, apart from whatever becomes of it; ``sealed`` makes it a snapshot."""

    about: About
    pickled: bytes
    arrays: list[tuple[bytes, int]]  # and bytes a number

    def sealed(self, key: bytes) -> bytes:
        """The snapshot, signed with ``key``. Most of it without the interpreter's lock."""
        sizes = [(len(data), width) for data, width in self.arrays]
        head = msgspec.json.encode(_Head(self.about, sizes, len(self.pickled)))
        parts = [_by_significance(data, width) for data, width in self.arrays]
        packed = bytes(cramjam.zstd.compress(b"".join([*parts, self.pickled]), _LEVEL))
        body = b"".join([_LENGTH.pack(len(head)), head, packed])
        return b"".join([_MAGIC, hmac.digest(key, body, hashlib.sha256), body])


def freeze(state: object, about: About | None = None) -> Frozen:
    """A copy of a state, of which a snapshot can be made elsewhere."""
    found: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(state, protocol=5, buffer_callback=found.append)
    arrays = [(bytes(one.raw()), memoryview(one).itemsize) for one in found]
    return Frozen(about or About(), pickled, arrays)


def seal(state: object, key: bytes, about: About | None = None) -> bytes:
    """Snapshot of ``state`` as bytes, signed with ``key``.

    >>> unseal(seal({"n": 1}, b"key"), [b"key"])
    {'n': 1}
    """
    return freeze(state, about).sealed(key)


def _by_significance(data: bytes, width: int) -> Any:
    # A copy of numpy's, unlike its ``tobytes``, leaves the lock to others.
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(-1, width).T)


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


def about(snapshot: bytes, keys: Iterable[bytes]) -> About:
    """What a snapshot that one of ``keys`` signed is of; nothing is opened. Raises Refused."""
    return _verified(snapshot, keys)[0].about


def unseal(snapshot: bytes, keys: Iterable[bytes]) -> Any:
    """Return the state in a snapshot that one of ``keys`` signed.

    Raises Refused if it is torn, foreign or holds a class that is not allowed.
    """
    head, packed = _verified(snapshot, keys)
    inflated = _inflated(packed, sum(n for n, _ in head.arrays) + head.pickled)
    arrays, at = list[Any](), 0
    for n, width in head.arrays:
        arrays.append(_restored(inflated[at : at + n], width))
        at += n
    try:
        return _Unpickler(io.BytesIO(inflated[at:]), buffers=arrays).load()
    except (
        pickle.UnpicklingError,
        AttributeError,
        ImportError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        MemoryError,
    ) as error:
        msg = f"snapshot was written by another version of weir: {error}"
        raise Refused(msg) from error


def _verified(snapshot: bytes, keys: Iterable[bytes]) -> tuple[_Head, memoryview]:
    """Head and compressed rest of a snapshot whose signature holds."""
    if not snapshot.startswith(_MAGIC) or len(snapshot) < len(_MAGIC) + _SIGNATURE_BYTES:
        is_older = snapshot.startswith(_EARLIER)
        why = "written by another version of weir" if is_older else "torn or foreign"
        raise Refused(f"snapshot of {len(snapshot)} bytes is no {_MAGIC.decode()}: it is {why}")
    view = memoryview(snapshot)[len(_MAGIC) :]
    signature, body = view[:_SIGNATURE_BYTES], view[_SIGNATURE_BYTES:]
    if not any(hmac.compare_digest(signature, hmac.digest(k, body, hashlib.sha256)) for k in keys):
        msg = "snapshot is not signed with learner.key: it is torn or foreign"
        raise Refused(msg)
    try:
        end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
        return msgspec.json.decode(body[_LENGTH.size : end], type=_Head), body[end:]
    except (msgspec.DecodeError, struct.error, UnicodeDecodeError) as error:
        msg = f"snapshot was written by another version of weir: {error}"
        raise Refused(msg) from None


def _inflated(packed: memoryview, length: int) -> memoryview:
    """What was compressed, into no more memory than the signed head says."""
    if not 0 <= length <= _INFLATED_MAX:
        msg = f"snapshot inflates to {length} bytes; expected at most {_INFLATED_MAX}"
        raise Refused(msg)
    inflated = bytearray(length)
    try:
        written = cramjam.zstd.decompress_into(packed, inflated)
    except (cramjam.DecompressionError, ValueError, OSError) as error:
        msg = f"snapshot does not inflate: {error}"
        raise Refused(msg) from None
    if written != length:
        msg = f"snapshot inflates to {written} bytes; expected {length}"
        raise Refused(msg)
    return memoryview(inflated)


def _restored(data: memoryview, width: int) -> Any:
    """An array's bytes in the order in which memory has them."""
    if width < 1 or len(data) % width:
        msg = f"snapshot holds an array of {len(data)} bytes, {width} a number"
        raise Refused(msg)
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(width, -1).T)
