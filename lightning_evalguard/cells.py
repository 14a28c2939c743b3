"""Cells of a notebook: what IPython, Jupyter and Colab call the code that is typed into them."""

from __future__ import annotations

import re
import sys

# IPython, and Colab's kernel, write the number of the execution into the name.
_NUMBERED = re.compile(r"(?:^<|[/\\])ipython-input-(\d+)-")
# A kernel writes a hash of the text: IPython's compiler knows which execution that was.
_HASHED = re.compile(r"[/\\](?:ipykernel_\d+|ipython-input-\d+\.py$)")


def cell_of(path: str) -> str | None:
    """``cell 9`` for code that was typed into a notebook; None for a file.

    Example:
        >>> cell_of("<ipython-input-9-0a1b2c3d>")
        'cell 9'
        >>> cell_of("src/model.py") is None
        True
    """
    numbered = _NUMBERED.search(path)
    if numbered is not None:
        return f"cell {numbered[1]}"
    if _HASHED.search(path) is None:
        return None
    number = _executions().get(path)
    if number is None:
        return "a cell"
    return f"cell {number}"


def _executions() -> dict[str, int]:
    """The number of each cell that the running shell compiled, by the name of its code."""
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return {}
    try:
        return dict(ipython.get_ipython().compile._filename_map)
    except Exception:  # noqa: BLE001 - no shell, or one that counts in another way
        return {}
