"""How places in files are shown, and written into patterns."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from lightning_evalguard.cells import cell_of


def file_pattern(location: str) -> str:
    """What `allow` matches all of a file by: of a library its path from the package on."""
    path = location.rpartition(":")[0]
    if path.startswith("<"):  # code that was typed in
        return path
    inside = short_path(path)
    name = inside
    if inside == path:
        name = PurePath(path).name
    return f"*/{PurePath(name).as_posix()}"


def shown_path(location: str) -> str:
    """`location` relative to the working directory where that is shorter, for a clickable link.

    Args:
        location: ``file:line``; of a notebook ``cell 9, line 3`` comes of it.
    """
    path, _, line = location.rpartition(":")
    cell = cell_of(path)
    if cell is not None:
        return f"{cell}, line {line}"
    try:
        return f"{Path(path).relative_to(Path.cwd())}:{line}"
    except (ValueError, OSError):
        return location


def short_path(place: str) -> str:
    """`place` from the package on, where it lies among installed packages."""
    for site in ("site-packages", "dist-packages"):
        place = place.rpartition(f"{os.sep}{site}{os.sep}")[2]
    return place
