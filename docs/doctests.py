"""Shows the doctests of the API as code: griffe knows the heading ``Examples:`` alone."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Renames the heading where a docstring is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """An object was read, with its docstring."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", text, flags=re.MULTILINE
            )
