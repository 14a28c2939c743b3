"""Was a checkpoint chosen by testing many?"""

from __future__ import annotations

import os
import re

_FREE = 2  # the best and the last
_FITS: dict[str, int] = {}
_TESTED: dict[object, set[str]] = {}
_NUMBER = re.compile(r"\d+(\.\d+)?")


def wrote(path: str, fit: int) -> None:
    """A fit wrote a checkpoint."""
    _FITS[os.path.abspath(path)] = fit


def tested(path: str) -> int:
    """How many checkpoints of one fit were tested in this process, where they are too many.

    Returns:
        0 where they are few, or where it is not known that they are of one fit.
    """
    path = os.path.abspath(path)
    fit = _fit_of(path)
    if fit is None:
        return 0
    files = _TESTED.setdefault(fit, set())
    files.add(path)
    if len(files) > _FREE:
        return len(files)
    return 0


def _fit_of(path: str) -> object:
    if path in _FITS:
        return _FITS[path]
    folder, name = os.path.split(path)
    if "epoch" not in name and "step" not in name:
        return None
    # those of one fit differ in their numbers alone
    return folder, _NUMBER.sub("#", name)
