"""A digest of any Python object's state, the same in every process."""

import enum
import hashlib
import struct
import types
from collections import defaultdict, deque
from typing import Any

import numpy as np
from river import compose


def digest_of(value: object) -> str:
    """SHA-256 of what ``value`` holds, whatever the hash seed or the order of a set or dictionary.

    Walks what pickle would store. Two objects with equal digests behave alike; cycles and shared
    parts are followed once. Cost: about that of pickling.

    >>> digest_of({"a": 1, "b": {2, 3}}) == digest_of({"b": {3, 2}, "a": 1})
    True
    >>> digest_of([1.0]) == digest_of([1])
    False
    """
    return _Walk().walk(value).hexdigest()


class _Walk:
    """One pass over an object graph."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        # Holding the objects keeps their ids from being given away during the walk.
        self._met: dict[int, tuple[int, object]] = {}

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def walk(self, value: object) -> "_Walk":
        if not self._leaf(value):
            self._branch(value)
        return self

    def _put(self, tag: str, data: bytes = b"") -> None:
        self._hash.update(tag.encode() + struct.pack(">I", len(data)) + data)

    def _leaf(self, value: Any) -> bool:
        """Write a value without parts; False if it has any."""
        if value is None or (isinstance(value, (bool, int, str, bytes)) and type(value) in _PLAIN):
            self._put(type(value).__name__, repr(value).encode("utf8", "surrogatepass"))
        elif type(value) is float:
            self._put("float", struct.pack(">d", value))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._put(
                "array",
                f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes(),
            )
        elif isinstance(value, np.generic):
            self._put("number", value.dtype.str.encode() + value.tobytes())
        elif isinstance(value, enum.Enum):
            self._put("enum", f"{type(value).__qualname__}.{value.name}".encode())
        elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            self._put("name", f"{value.__module__}.{value.__qualname__}".encode())
        else:
            return False
        return True

    def _branch(self, value: Any) -> None:
        """Write a value with parts, or a reference to where it was met."""
        if id(value) in self._met:
            self._put("again", struct.pack(">I", self._met[id(value)][0]))
            return
        self._met[id(value)] = (len(self._met), value)
        self._put("open", f"{type(value).__module__}.{type(value).__qualname__}".encode())
        if isinstance(value, (set, frozenset)):
            for part in sorted(digest_of(item) for item in value):
                self._put("item", part.encode())
        elif isinstance(value, dict):
            for key, item in sorted(
                ((digest_of(k), v) for k, v in _told(value)), key=lambda pair: pair[0]
            ):
                self._put("key", key.encode())
                self.walk(item)
        elif isinstance(value, (list, tuple, deque)):
            for item in value:
                self.walk(item)
        elif _is_generator(value):
            self.walk(value.getstate())
        elif isinstance(value, types.MethodType):
            self.walk(value.__self__).walk(value.__func__)
        if type(value) not in (dict, list, tuple, deque, set, frozenset):
            self.walk(_state_of(value))
        self._put("close")


def _told(value: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """The items but those that reading alone leaves behind in a ``defaultdict`` of numbers."""
    if isinstance(value, defaultdict) and value.default_factory in (float, int):
        return [(key, item) for key, item in value.items() if item != 0]
    return list(value.items())


def _is_generator(value: Any) -> bool:
    """Whether this is one of the standard library's generators: the core does not import them."""
    return any(kind.__module__ == "random" for kind in type(value).__mro__)


_PLAIN = (bool, int, str, bytes)


def _state_of(value: Any) -> Any:
    """What pickle would store beside the class; nothing for what has been walked already."""
    if _is_generator(value) or isinstance(value, types.MethodType):
        return None
    if type(value).__module__.startswith("river.proba"):
        # A distribution carries a generator for sampling, which neither learns nor scores.
        return {name: part for name, part in vars(value).items() if name != "_rng"}
    if isinstance(value, compose.Pipeline):
        # The rest are caches that the first score fills.
        return list(value.steps.items())
    if isinstance(value, (dict, list, set, frozenset, deque, tuple)):
        return getattr(value, "__dict__", None), getattr(value, "default_factory", None)
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return reduced
    # Arguments and state; then the items of a list and of a dictionary, which are iterators.
    return *reduced[1:3], *(list(items) for items in reduced[3:5] if items is not None)
