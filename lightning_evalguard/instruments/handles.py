"""What runs on or acts beyond the process, and so cannot be put back: known by its class."""

from __future__ import annotations

import array
import functools
import io
import os
import sys
import types
import weakref
from typing import Any

from torch import nn

from lightning_evalguard.instruments.source import LIBRARIES, owner_of

LIGHTNING = frozenset({"lightning", "pytorch_lightning", "lightning_fabric"})
_HASHES = ("_hashlib", "_blake2", "_md5", "_sha1", "_sha2", "_sha3", "hmac")
_COMPRESSORS = ("zlib", "_bz2", "bz2", "_lzma", "lzma", "gzip")
# Classes of these run on, or act beyond the process, and cannot be put back.
_HANDLES = {
    "_io": "an open file",
    "io": "an open file",
    "mmap": "an open file",
    "tempfile": "an open file",
    "zipfile": "an open file",
    "tarfile": "an open file",
    "dbm": "a database",
    "shelve": "a database",
    "sqlite3": "a database",
    "_sqlite3": "a database",
    "socket": "a connection",
    "_socket": "a connection",
    "ssl": "a connection",
    "http": "a connection",
    "ftplib": "a connection",
    "smtplib": "a connection",
    "socketserver": "a connection",
    "queue": "a queue",
    "_queue": "a queue",
    "subprocess": "a process",
    "multiprocessing": "another process's",
    "concurrent": "a pool of workers",
    "asyncio": "a loop of tasks",
    "_asyncio": "a loop of tasks",
    "selectors": "a loop of tasks",
    "sched": "a loop of tasks",
    # written in C: what they hold is not seen
    **dict.fromkeys(_HASHES, "a hash that runs on"),
    **dict.fromkeys(_COMPRESSORS, "a stream that runs on"),
    "xml": "a tree of elements",
    "lxml": "a tree of elements",
}
_IN_MEMORY = (io.StringIO, io.BytesIO)
_THREADS = frozenset({"Thread", "Timer", "Event", "Condition", "Barrier", "Semaphore"})
_ACTING = frozenset(
    {"write", "flush", "send", "sendall", "recv", "execute", "cursor", "commit"}
)


def is_buffer(kind: type) -> bool:
    """Whether a thing holds nothing but numbers or text of its own, all of which can be copied."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.ndarray):
        return True
    return issubclass(kind, (bytearray, array.array)) or kind in _IN_MEMORY


def handle_of(kind: type, value: object) -> str | None:
    """What a thing is that runs on or acts beyond the process, in words; None for others."""
    if kind in _IN_MEMORY:
        return None
    if issubclass(kind, (nn.Module, *weakref.ProxyTypes)):
        return None
    named = f"a {kind.__name__}"
    if isinstance(value, memoryview) and not value.readonly:
        return "a view of another's memory"
    if issubclass(
        kind, (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
    ):
        return "a generator"
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        if package in _HANDLES:
            return f"{named}, {_HANDLES[package]}"
        if package == "threading" and base.__name__ in _THREADS:
            return f"{named}, of other threads"
    owner = _owner(value)
    following = next(
        (vars(b)["__next__"] for b in kind.__mro__ if "__next__" in vars(b)), None
    )
    if following is not None and owner not in LIGHTNING:
        written = isinstance(following, types.FunctionType)
        if not written or owner in LIBRARIES:
            return f"{named}, an iterator"
    if owner != "user" and owner not in LIGHTNING:
        members = {name for base in kind.__mro__ for name in vars(base)}
        if "close" in members and members & _ACTING:
            return f"{named}, which writes or sends"
    return None


def _owner(value: object) -> str:
    kind: Any = type(value)
    return owner_of_class(kind)


@functools.lru_cache(maxsize=4096)
def owner_of_class(kind: Any) -> str:
    module = sys.modules.get(kind.__module__)
    if kind.__module__ in ("__main__", "builtins"):
        if kind.__module__ == "__main__":
            return "user"
        return "stdlib"
    path = None
    if module is not None:
        path = vars(module).get("__file__")
    if path is None:
        # of a C module, or of a file that is gone: functions in it tell
        written = (m for m in vars(kind).values() if isinstance(m, types.FunctionType))
        first = next(written, None)
        if first is None:
            return "stdlib"
        return owner_of(first.__code__.co_filename)
    return owner_of(os.path.abspath(path))


__all__ = ["LIGHTNING", "handle_of", "owner_of_class"]
