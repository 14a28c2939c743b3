"""Hyper-parameters as plain data, without what nobody should read in a file."""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Mapping, Set
from pathlib import PurePath
from typing import Any

MASK = "***"
_SECRET = re.compile(r"pass(word|wd|phrase)|^pwd$|secret|credential", re.IGNORECASE)
# Of these a number is none: max_tokens, pad_token_id, num_keys.
_MAYBE = re.compile(r"key|token|auth(?!or)|bearer|cookie|private|dsn", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*(?=@)")
_DEEP, _LONG = 8, 200


def plain(value: Any, name: str = "", depth: int = _DEEP) -> Any:
    """`value` as data that ``json.dumps`` takes, with secrets masked.

    What stands under a name that speaks of a password, secret, credential, key or token is
    ``"***"``, at any depth; a number under a name like ``max_tokens`` is none. Of objects the
    class is kept alone, since their `repr` may show anything.

    Example:
        >>> plain({"lr": 0.1, "hub": {"api_key": "hf_9", "max_tokens": 8}})
        {'lr': 0.1, 'hub': {'api_key': '***', 'max_tokens': 8}}
    """
    if _is_secret(name, value):
        return MASK
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (str, PurePath)):
        text = _IN_ADDRESS.sub(MASK, str(value))
        return text if len(text) <= _LONG else text[: _LONG - 1] + "…"
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, type) or callable(value):
        return _named(value)
    inside = _items(value)
    if depth and inside is not None:
        return {str(k): plain(v, str(k), depth - 1) for k, v in inside.items()}
    if depth and isinstance(value, (list, tuple, Set)):
        return [plain(v, name, depth - 1) for v in value]
    kind = type(value)
    # torch.float32, device(type='cpu'): short, and what they are
    return str(value) if kind.__module__ == "torch" and len(str(value)) < 40 else _named(kind)


def _is_secret(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool) or not name:
        return False
    if _SECRET.search(name):
        return True
    return bool(_MAYBE.search(name)) and not isinstance(value, (int, float))


def _items(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if type(value).__name__ in ("Namespace", "SimpleNamespace"):  # argparse's and jsonargparse's
        return dict(vars(value))
    return None


def _named(value: Any) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"<{kind.__module__}.{kind.__qualname__}>"
