"""What is printed to a terminal: in colour, with places to click, where `rich` is installed.

Everywhere else, and wherever anything fails here, the text stays as it is, byte for byte.
"""

from __future__ import annotations

import os
import random
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from lightning_evalguard.checks.registry import CHECKS, page_of

# what runs while the interpreter prints an exception
_PRINTING = ("traceback", "lightning_evalguard.plain.uncaught")
_DUMB = ("dumb", "unknown")
_NOT_REPLACED = re.compile(r"_?(py_)?warnings$|lightning_evalguard\.")

_PLACE = re.compile(r"(?:(?<=\s)|^)(?P<path>[^\s:`]+\.py):(?P<line>\d+)", re.M)
_CODE = re.compile(r"`[^`\n]+`")
_TAG = re.compile(rf"\[({'|'.join(sorted(CHECKS))})\]")
_MEANT = re.compile(r" If it is meant: [^\n]*(?= \[)")
_COUNT = re.compile(
    r"^(?:lightning-evalguard: )?(?:rank \d+: )?(?P<count>[\d,]+|no) findings?\b", re.M
)
_WARNS = re.compile(r"(?:^ *warning:)|EvalGuardWarning", re.M)
_ASIDE = re.compile(r"^(?:note|checked|  left out|  95 % intervals): [^\n]*", re.M)
_HEAD = re.compile(r"^ +class +support[^\n]*", re.M)


@contextmanager
def _generator_kept() -> Iterator[None]:
    # rich draws numbers of its own from Python's generator, which is the user's.
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@_generator_kept()
def console_of(stream: Any) -> Any:
    """A console of `rich` that writes to `stream`; None where the text has to be plain.

    Plain it is where `rich` is not installed, where nobody looks (a file, a pipe, a notebook), and
    where the environment asks for it (``NO_COLOR``, ``TERM=dumb``).
    """
    try:
        if not stream.isatty() or os.environ.get("NO_COLOR"):
            return None
        if os.environ.get("TERM", "").lower() in _DUMB:
            return None
        from rich.console import Console

        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        if console.color_system is None or console.legacy_windows:
            return None
        return console
    except Exception:  # noqa: BLE001 - no rich, another rich, a stream that is closed
        return None


@_generator_kept()
def coloured(text: str, stream: Any, remedies: Sequence[str] = ()) -> str:
    """`text` as it is printed to `stream`: where that is no terminal, the same.

    Without its escapes it is the same in a terminal, too: no line is broken or filled up.

    Args:
        text: What is printed.
        stream: Where.
        remedies: Those of the findings in it: what to do stands out.
    """
    console = console_of(stream)
    if console is None:
        return text
    try:
        return _captured(console, _styled(text, remedies))
    except Exception:  # noqa: BLE001 - a text without colour is better than none
        return text


@_generator_kept()
def as_table(rows: Sequence[tuple[str, Sequence[str]]], stream: Any) -> str | None:
    """Rows of a label and its cells as a drawn table; None where text has to be plain.

    Args:
        rows: The first holds the heads of the columns.
        stream: Where it is printed.
    """
    console = console_of(stream)
    if console is None:
        return None
    try:
        return _captured(console, _table(rows)).rstrip("\n")
    except Exception:  # noqa: BLE001 - as above
        return None


@contextmanager
def coloured_warnings(remedies: Sequence[str]) -> Iterator[None]:
    """Within it, a warning of ours that is printed to a terminal is coloured.

    Who records warnings, or has them shown in another way, gets them plain.
    """
    plain = warnings.formatwarning
    shown_as_ever = all(
        _NOT_REPLACED.match(getattr(function, "__module__", None) or "")
        for function in (plain, warnings.showwarning)
    )
    if not shown_as_ever or console_of(sys.stderr) is None:
        yield
        return

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        line: str | None = None,
    ) -> str:  # fmt: skip
        text = plain(message, category, filename, lineno, line)
        ours = category.__module__.startswith("lightning_evalguard.")
        if ours:
            return coloured(text, sys.stderr, remedies)
        return text

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        if warnings.formatwarning is formatted:
            warnings.formatwarning = plain


def is_uncaught(depth: int) -> bool:
    """Whether nobody but the interpreter asks, which prints an exception that nobody caught.

    Args:
        depth: Frames to leave out, counted from the caller of this function.
    """
    frame: FrameType | None
    try:
        frame = sys._getframe(depth + 1)
    except ValueError:
        return True
    while frame is not None and frame.f_globals.get("__name__") in _PRINTING:
        frame = frame.f_back
    return frame is None


def _styled(text: str, remedies: Sequence[str]) -> Any:
    from rich.style import Style
    from rich.text import Text

    styled = Text(text)
    for aside in (_ASIDE, _MEANT):
        styled.highlight_regex(aside, style="dim")
    styled.highlight_words([remedy for remedy in remedies if remedy], style="green")
    styled.highlight_regex(_HEAD, style="bold underline")
    styled.highlight_regex(_CODE, style="cyan")
    styled.highlight_regex(_WARNS, style="yellow")
    for match in _COUNT.finditer(text):
        colour = "red"
        if match["count"] == "no":
            colour = "green"
        styled.stylize(f"bold {colour}", match.start("count"), match.end())
    for match in _TAG.finditer(text):
        styled.stylize(Style(dim=True, link=page_of(match[1])), *match.span())
    for match in _PLACE.finditer(text):
        styled.stylize(
            Style(bold=True, link=_link(match["path"], match["line"])), *match.span()
        )
    return styled


def _link(path: str, line: str) -> str | None:
    """The address of a line, as terminals and editors take it; None for a file that is not here."""
    file = Path(path)
    if not file.is_file():
        return None
    return f"{file.absolute().as_uri()}#{line}"


def _table(rows: Sequence[tuple[str, Sequence[str]]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    (corner, heads), *others = rows
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(Text(corner), style="bold")
    for head in heads:
        table.add_column(Text(head), justify="right", overflow="fold")
    for label, cells in others:
        differ = len(set(cells)) > 1
        style = "dim"
        if differ:
            style = ""
        table.add_row(Text(label), *(Text(cell, style=style) for cell in cells))
    return table


def _captured(console: Any, what: Any) -> str:
    with console.capture() as capture:
        console.print(what, soft_wrap=True, end="")
    return str(capture.get())


def print_coloured(
    text: str, stream: TextIO | None = None, remedies: Sequence[str] = ()
) -> None:
    """Print `text` on `stream`, else on standard error."""
    stream = sys.stderr if stream is None else stream
    print(coloured(text, stream, remedies), file=stream)


__all__ = [
    "as_table",
    "coloured",
    "coloured_warnings",
    "console_of",
    "is_uncaught",
    "print_coloured",
]
