"""Where in the user's code: the first frame outside the libraries, as file:line and expression."""

from __future__ import annotations

import functools
import itertools
import linecache
import os
import sys
import sysconfig
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType

# the package
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_SITE = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
# These are libraries also where they do not lie in site-packages: an editable install, a checkout.
_LIBRARIES = {
    "torch",
    "torchmetrics",
    "lightning",
    "pytorch_lightning",
    "lightning_fabric",
}
# What interpreters, notebooks and doctests call the code that is typed into them.
_TYPED = (
    "<stdin>",
    "<python-input",
    "<ipython-input",
    "<input",
    "<console",
    "<cell",
    "<command",
    "<doctest ",
)


@dataclass(frozen=True)
class Site:
    """A place in source code.

    Attributes:
        location: ``file:line``, absolute.
        expression: Source text of the running expression, or of the line before Python 3.11.
        function: Name of the enclosing function.
        owner: ``"user"``, or the name of the package that owns the file.
    """

    location: str
    expression: str
    function: str
    owner: str

    @property
    def quoted(self) -> str:
        """The expression as a message quotes it; of code without a source, where it stands."""
        if self.expression:
            return f"`{self.expression}`"
        return f"a line of `{self.function}`"


@functools.cache
def owner_of(filename: str) -> str:
    """Who owns a source file: ``user``, ``self``, ``stdlib``, or a package's name."""
    if filename.startswith(_HERE):
        return "self"
    for site in _SITE:
        if site in filename:
            return filename.rsplit(site, 1)[1].split(os.sep)[0].removesuffix(".py")
    for name in _LIBRARIES:
        root = os.path.dirname(getattr(sys.modules.get(name), "__file__", None) or "")
        if root and filename.startswith(root + os.sep):
            return name
    if filename.startswith("<"):
        if filename.startswith(_TYPED):
            return "user"
        return "stdlib"
    if filename.startswith(_STDLIB):
        return "stdlib"
    return "user"


def site_of(frame: FrameType) -> Site:
    """The place a frame stands at."""
    return site_at(frame.f_code, frame.f_lasti, frame.f_lineno)


def site_at(code: CodeType, lasti: int, lineno: int) -> Site:
    """The place of one instruction, for those who kept it instead of its frame."""
    line, text = _text(code, lasti, lineno)
    return Site(
        f"{code.co_filename}:{line}", text, code.co_name, owner_of(code.co_filename)
    )


def nearest(frame: FrameType | None, skip: frozenset[str]) -> FrameType | None:
    """The first frame, going outwards from `frame`, whose file's owner is not in `skip`."""
    while frame is not None and owner_of(frame.f_code.co_filename) in skip:
        frame = frame.f_back
    return frame


LIBRARIES = frozenset({*_LIBRARIES, "self", "stdlib"})
# below these, whoever called is the owner
PLUMBING = frozenset({"torch", "self", "stdlib"})


def user_site(depth: int = 1, outside: str = "") -> Site | None:
    """The nearest place outside torch, Lightning, torchmetrics, the standard library and here.

    Args:
        depth: Frames to leave out, counted from the caller of this function.
        outside: One more package whose frames are left out.
    """
    skip = LIBRARIES
    if outside:
        skip |= {outside}
    frame = nearest(sys._getframe(depth), skip)
    if frame is None:
        return None
    return site_of(frame)


@functools.lru_cache(maxsize=4096)
def _text(code: CodeType, lasti: int, lineno: int) -> tuple[int, str]:
    first = lineno
    last = lineno
    start = None
    stop = None
    if sys.version_info >= (3, 11):
        positions = list(code.co_positions())
        index = lasti // 2
        if 0 <= index < len(positions) and positions[index][0] is not None:
            first, last, start, stop = positions[index]  # type: ignore[assignment]
    line = linecache.getline(code.co_filename, first)
    if first == last and start is not None and stop is not None:
        return first, line.encode()[start:stop].decode(errors="replace").strip()
    return first, beginning_of(line)


def beginning_of(line: str) -> str:
    """The first line of an expression that has more, without its comment."""
    code = line.partition("  #")[0].strip()
    if code.endswith("("):
        return f"{code}...)"
    return code


def expression_of(frame: FrameType) -> str:
    """Source text of the whole expression that runs, its lines joined; the line before 3.11."""
    return _whole_text(frame.f_code, frame.f_lasti, frame.f_lineno)


@functools.lru_cache(maxsize=4096)
def _whole_text(code: CodeType, lasti: int, lineno: int) -> str:
    if sys.version_info >= (3, 11):
        for first, last, start, stop in itertools.islice(
            code.co_positions(), lasti // 2, lasti // 2 + 1
        ):
            if first is None or last is None or first == last:
                break
            lines = [
                linecache.getline(code.co_filename, n).encode()
                for n in range(first, last + 1)
            ]
            lines[-1] = lines[-1][:stop]
            lines[0] = lines[0][start:]
            return " ".join(b" ".join(lines).decode(errors="replace").split())
    return _text(code, lasti, lineno)[1]


def raised_at(trace: TracebackType | None) -> str | None:
    """The innermost line of the user's own that an exception passed."""
    found = None
    while trace is not None:
        code = trace.tb_frame.f_code
        if owner_of(code.co_filename) == "user":
            found = site_at(code, trace.tb_lasti, trace.tb_lineno).location
        trace = trace.tb_next
    return found
