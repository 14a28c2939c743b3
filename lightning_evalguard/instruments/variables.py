"""The variables of a function that runs, without keeping what they hold alive.

Before Python 3.13 a frame that is asked for its variables puts them into a dictionary, which it
keeps until it is asked again or ends: what the function deletes meanwhile would live on in it.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any

# Who refers to the dictionary where nobody else asked for it: the frame, a variable, an argument.
_NOBODY_ELSE = 3


def variables(frame: FrameType) -> dict[str, Any]:
    """All of them by name, as they are now; of a module or a class its namespace."""
    held = frame.f_locals
    found = dict(held)
    # what `locals()` gave the user is this dictionary, too, and that of a module is its own
    of_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED
    if of_function and type(held) is dict and sys.getrefcount(held) == _NOBODY_ELSE:
        held.clear()
    return found


def variable(frame: FrameType, name: str, default: Any = None) -> Any:
    """One of them, or `default` where it has none by that name."""
    return variables(frame).get(name, default)
