"""What a step does that cannot be undone: files, processes, connections; and the code that it runs.

Python tells an audit hook of each file that is opened, each process and each connection before it
happens. What native code does without telling is known by the functions that lead to it. No hook
can be taken out again, and with one each ``id()`` of the process takes seven times as long, so it
is put in no earlier than the code calls the first function of which it would hear.
"""

from __future__ import annotations

import dis
import functools
import gc
import inspect
import io
import os
import sys
import threading
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from lightning_evalguard.instruments.dynamo import skip_dynamo
from lightning_evalguard.instruments.source import LIBRARIES, owner_of

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events that reach beyond the process, by their name or by the first part of it.
_BEYOND = {
    "subprocess.Popen": "starts a process",
    "os.system": "starts a process",
    "os.exec": "starts a process",
    "os.fork": "starts a process",
    "os.forkpty": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.spawn": "starts a process",
    "os.startfile": "starts a process",
    "os.kill": "sends a signal",
    "os.chdir": "changes the working directory",
    "socket.connect": "opens a connection",
    "socket.bind": "opens a connection",
    "socket.sendto": "sends over a socket",
    "socket.sendmsg": "sends over a socket",
    "http.client.send": "sends a request",
    "urllib.Request": "sends a request",
    "smtplib.send": "sends a mail",
    "ftplib.sendcmd": "sends a request",
    "sqlite3.connect": "opens a database",
}
_FILES = frozenset(
    {
        "os.mkdir",
        "os.rmdir",
        "os.remove",
        "os.rename",
        "os.link",
        "os.symlink",
        "os.truncate",
    }
    | {"os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr"}
    | {"shutil.copyfile", "shutil.copymode", "shutil.copystat", "shutil.copytree"}
    | {"shutil.move", "shutil.rmtree", "shutil.make_archive", "shutil.unpack_archive"}
    | {"tempfile.mkstemp", "tempfile.mkdtemp"}
)
# Below these frames files are written that hold the same whoever writes them, or that a replay does
# not write: compilers' caches, and loggers, which a replay finds replaced.
_FOLDERS = (
    "/torch/_dynamo/",
    "/torch/_inductor/",
    "/torch/_functorch/",
    "/triton/",
    "/pytorch/loggers/",
    "/pytorch_lightning/loggers/",
)
_HARMLESS = tuple(folder.replace("/", os.sep) for folder in _FOLDERS)
# Functions of native code that write without an event; methods by what they are called on.
_NATIVE = frozenset({"imwrite", "imwritemulti"})
_ACTS = frozenset(
    {
        "write",
        "writelines",
        "truncate",
        "send",
        "sendall",
        "put",
        "put_nowait",
        "get",
        "get_nowait",
    }
    | {"read", "readline", "readlines", "readinto", "recv", "recv_into", "seek"}
    | {
        "execute",
        "executemany",
        "executescript",
        "commit",
        "fetchone",
        "fetchmany",
        "fetchall",
    }
)
_READS = frozenset({"read", "readline", "readlines", "readinto", "seek"})
_HANDLES = frozenset(
    {"_io", "socket", "_socket", "ssl", "_ssl", "_queue", "sqlite3", "_sqlite3"}
)
_CALLS = {os.write: "writes to a file"}
# What an audit hook hears of: functions, and methods by their names. Python's own modules tell of
# what they are about to do through `sys.audit`.
_OF_OS = (
    *("open", "mkdir", "rmdir", "remove", "unlink", "rename", "replace", "link"),
    *("symlink", "truncate", "ftruncate", "chmod", "fchmod", "lchmod", "chown"),
    *("fchown", "lchown", "utime", "setxattr", "removexattr", "system", "execv"),
    *("execve", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"),
    *("kill", "killpg", "chdir", "fchdir"),
)
_HEARD = frozenset(
    {io.open, io.open_code, sys.audit}
    | {getattr(os, name) for name in _OF_OS if hasattr(os, name)}
)
_HEARD_METHODS = frozenset({"connect", "bind", "sendto", "sendmsg", "tofile"})
_WRITE_CALLS = Path("/proc/self/io")


class Abort(BaseException):
    """Ends a replay before something happens, past the user's ``except Exception``."""


class Effects:
    """Hears what the code inside does beyond the process, in this thread, while it is entered.

    What the garbage collector ends meanwhile (old generators, temporary files of somebody else) is
    no act of that code: it comes whenever memory says so.

    Args:
        forbid: Raise `Abort` before it happens.
        calls: Hear which code runs too, which costs a fraction of a microsecond a call. Where
            somebody profiles this thread already, or Dynamo compiles, that is not done. Then, and
            where the kernel does not count writes, the audit hook is put in at once.

    Attributes:
        why: The first of what cannot be undone, in words, or None.
        code: The code that ran, of the user's and of packages around torch, each with its globals.
    """

    def __init__(self, forbid: bool = False, calls: bool = True) -> None:
        self.why: str | None = None
        self.code: dict[CodeType, dict[str, Any]] = {}
        self._forbid = forbid
        self._calls = calls
        self._profiles = False
        self._writes: int | None = None
        self._thread = 0
        self._collects = False
        self._own: set[int] = set()
        self._known: set[CodeType] = set()

    def __enter__(self) -> Effects:
        self._thread = threading.get_ident()
        _listening.append(self)
        gc.callbacks.append(self._collected)
        self._profiles = self._calls and sys.getprofile() is None
        if self._profiles:
            self._writes = _writes_so_far()
            sys.setprofile(self._call)
        if self._writes is None:  # nothing else would tell that native code writes
            _install()
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiles and sys.getprofile() == self._call:
            sys.setprofile(None)
        # native code wrote, or another thread: a replay is to hear of it before it happens
        if self._writes is not None and self._writes != _writes_so_far():
            _install()
        if self in _listening:
            _listening.remove(self)
        gc.callbacks.remove(self._collected)
        self._own.clear()

    def _add(self, why: str) -> None:
        if self.why is None:
            self.why = why
        if self._forbid:
            raise Abort(why)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        """The garbage collector begins or ends, in whichever thread."""
        if self._thread == threading.get_ident():
            self._collects = phase == "start"

    # what python tells

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit event of this process; most are none of this thread's, or harmless."""
        if self._thread != threading.get_ident() or self._collects:
            return
        why = _reason(event, args)
        if why is not None and not _is_harmless(sys._getframe(1)):
            self._add(why)

    # what runs

    def _call(self, frame: FrameType, event: str, arg: Any) -> None:
        if self._collects:
            return
        if event == "call":
            self._python(frame)
        elif event == "c_call":
            is_heard = arg in _HEARD or arg.__name__ in _HEARD_METHODS
            if is_heard and not _installed and _changes_something(frame):
                _install()
            self._native(arg)

    def _python(self, frame: FrameType) -> None:
        code = frame.f_code
        if code.co_flags & _RUNS_ON:
            known = id(frame) in self._own
            self._own.add(id(frame))
            ours = owner_of(code.co_filename) == "self"
            if not (known or ours or self.why) and frame.f_lasti > _start(code):
                # Raising here would end the generator, so it is not forbidden but told.
                self.why = f"takes from the generator `{code.co_name}`"
        if code in self._known:
            return
        self._known.add(code)
        if code is _SAVES:
            self._add("writes to a file")
        if owner_of(code.co_filename) not in LIBRARIES:
            self.code[code] = frame.f_globals

    def _native(self, function: Any) -> None:
        name = function.__name__
        if name in _NATIVE:
            self._add("writes to a file")
        if name not in _ACTS:
            return
        if function in _CALLS:
            self._add(_CALLS[function])
        owner = function.__self__
        if type(owner).__module__ not in _HANDLES or owner in (sys.stdout, sys.stderr):
            return
        if type(owner).__name__ in ("StringIO", "BytesIO"):
            return
        if type(owner).__module__ == "_io" and name in _READS:
            # most files that are read were opened for it, and the others are named
            return
        self._add(f"calls `{type(owner).__name__}.{name}`")


_RUNS_ON = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
# `torch.save` to a path: the file is opened by native code.
_SAVES: CodeType | None = getattr(
    getattr(
        getattr(torch.serialization, "_open_zipfile_writer_file", None),
        "__init__",
        None,
    ),
    "__code__",
    None,
)


@functools.lru_cache(maxsize=1024)
def _start(code: CodeType) -> int:
    """Where a generator stands that has not run yet."""
    resumes = (i.offset for i in dis.get_instructions(code) if i.opname == "RESUME")
    return next(resumes, -1)


def _reason(event: str, args: tuple[Any, ...]) -> str | None:
    if event == "open":
        if len(args) >= 3:
            return _opened(*args[:3])
        return None
    if event in _FILES:
        if _is_bytecode(args[0] if args else None):
            return None
        return "changes files"
    return _BEYOND.get(event) or None


def _opened(path: Any, mode: Any, flags: Any) -> str | None:
    if isinstance(mode, str):
        writes = any(letter in mode for letter in "wax+")
    else:
        writes = isinstance(flags, int) and bool(flags & _WRITING)
    if not writes or path == os.devnull or _is_bytecode(path):
        return None
    return "writes to a file"


def _is_bytecode(path: Any) -> bool:
    return isinstance(path, str) and ("__pycache__" in path or ".pyc" in path)


def _is_harmless(frame: FrameType | None) -> bool:
    """Whether a compiler or a logger is at work."""
    while frame is not None:
        if any(folder in frame.f_code.co_filename for folder in _HARMLESS):
            return True
        frame = frame.f_back
    return False


def _changes_something(frame: FrameType | None) -> bool:
    """Whether what is called in a frame, of which an audit hook would hear, may be no reading.

    Who shows a line of code, as a warning does, or looks for a package opens files to read them.
    """
    while frame is not None:
        path = frame.f_code.co_filename
        owner = owner_of(path)
        if owner == "self" or (owner == "stdlib" and _only_reads(path)):
            return False
        if owner == "user":
            return True
        frame = frame.f_back
    return True


def _only_reads(path: str) -> bool:
    return path == tokenize.__file__ or "importlib" in path


def _writes_so_far() -> int | None:
    """How often this process has asked its kernel to write; None where the kernel does not say."""
    try:
        counts = dict(_counts(_WRITE_CALLS.read_text()))
    except (OSError, ValueError):
        return None
    return counts.get("syscw")


def _counts(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        name, _, count = line.partition(":")
        yield name, int(count)


_listening: list[Effects] = []
_installed = False


def _install() -> None:
    """Put in the one hook of this process, for good: python knows no way to take it out again."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(skip_dynamo(_hear))
        skip_dynamo(Effects._collected)  # it runs wherever the collector begins


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _listening:
        _listening[-1].hear(event, args)


__all__ = ["Abort", "Effects"]
