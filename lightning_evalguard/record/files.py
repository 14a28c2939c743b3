"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none


def write_new(folder: Path, stem: str, text: str) -> Path:
    """Write `text` to a file that did not exist: ``stem.json``, else ``stem-2.json``, ...

    A name is taken together with its content, so that of two processes each gets its own file and
    no reader sees one that is empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary(folder, text) as written:
        for n in itertools.count(1):
            path = folder / (f"{stem}.json" if n == 1 else f"{stem}-{n}.json")
            try:
                _take(written, path)
            except FileExistsError:
                continue
            return path
    raise AssertionError  # itertools.count never ends


def write_over(path: Path, text: str) -> None:
    """Put `text` in the place of what `path` holds; a crash in the middle leaves the old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path.parent, text) as written:
        os.replace(written, path)


def append_line(path: Path, line: str) -> None:
    """Append one line; lines of several processes do not mix.

    Raises:
        OSError: If `path` is a symbolic link, which may lead to somebody else's file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o666)
    try:
        size = os.fstat(file).st_size
        # one that was cut off by a crash must not swallow the next
        cut = (
            size > 0
            and os.lseek(file, -1, os.SEEK_END) >= 0
            and os.read(file, 1) != b"\n"
        )
        os.write(file, ("\n" * cut + line + "\n").encode())
    finally:
        os.close(file)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of one JSON object a line; broken lines are passed over.

    Raises:
        OSError: If `path` is a symbolic link.
    """
    found = []
    with suppress(FileNotFoundError), _opened(path) as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict):
                    found.append(record)
    return found


def _opened(path: Path) -> TextIO:
    file = os.open(path, os.O_RDONLY | _NO_LINK)
    return open(file, encoding="utf-8", errors="replace")


def json_text(value: Any, indent: str = "") -> str:
    """JSON that a person can read: lists of numbers stay on one line, all else has its own."""
    deeper = indent + " "
    if isinstance(value, Mapping) and value:
        inside = [
            f"{json.dumps(str(k))}: {json_text(v, deeper)}" for k, v in value.items()
        ]
        return "{\n" + ",\n".join(deeper + line for line in inside) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(v, (Mapping, list)) for v in value):
        inside = [json_text(v, deeper) for v in value]
        return "[\n" + ",\n".join(deeper + line for line in inside) + f"\n{indent}]"
    return json.dumps(value)


@contextmanager
def _temporary(folder: Path, text: str) -> Iterator[Path]:
    """A file beside the one to come, on the disk when the block begins and gone when it ends."""
    path = folder / f".evalguard-{os.getpid()}-{os.urandom(4).hex()}.tmp"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(file, "wb") as written:
            written.write(text.encode())
            written.flush()
            os.fsync(written.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _take(written: Path, path: Path) -> None:
    """Give `written` the name `path` where nothing has it.

    Raises:
        FileExistsError: If something has.
    """
    try:
        os.link(written, path)
    except FileExistsError:
        raise
    except OSError:
        # a file system without hard links: the name first, then the content
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(written, path)
