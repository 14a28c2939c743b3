"""Hyper-parameters as plain data, without what nobody should read in a file."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

from lightning_evalguard.record.secrets import (
    MASK,
    is_secret,
    option_name,
    without_secrets,
)

_DEEP, _LONG, _MANY = 8, 200, 10_000
_NAMES = ("name", "key", "option", "header")
_VALUES = ("value", "default")


def plain(value: Any, name: str = "", depth: int = _DEEP) -> Any:
    """`value` as data that ``json.dumps`` takes, with secrets masked.

    What stands under a name that speaks of a password, secret, credential, key or token is
    ``"***"``, at any depth; a number under a name like ``max_tokens`` is none. Of objects the
    class is kept alone, since their `repr` may show anything.

    Example:
        >>> plain({"lr": 0.1, "hub": {"api_key": "hf_9", "max_tokens": 8}})
        {'lr': 0.1, 'hub': {'api_key': '***', 'max_tokens': 8}}
    """
    if is_secret(name, value):
        return MASK
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return str(value)
    if isinstance(value, (str, PurePath)):
        text = _text(str(value), depth)
        if len(text) <= _LONG:
            return text
        return text[: _LONG - 1] + "…"
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, type) or callable(value):
        return _named(value)
    inside = _items(value)
    if depth and inside is not None:
        return _mapping(inside, depth - 1)
    if depth and isinstance(value, (list, tuple, Set)):
        return _listed(list(itertools.islice(value, _MANY)), name, depth - 1)
    kind = type(value)
    # torch.float32, device(type='cpu'): short, and what they are
    if kind.__module__ == "torch" and len(str(value)) < 40:
        return str(value)
    return _named(kind)


def _text(text: str, depth: int) -> str:
    """A text without its secrets, also where it is JSON."""
    if depth and text.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return without_secrets(text)
        masked = plain(value, depth=depth - 1)
        if masked != value:
            return json.dumps(masked)
    return without_secrets(text)


def _mapping(inside: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    made = {}
    for key, value in itertools.islice(inside.items(), _MANY):
        name = without_secrets(str(key))
        made[name] = plain(value, str(key), depth)
    # {"name": "token", "value": ...}
    named = next((inside[n] for n in _NAMES if isinstance(inside.get(n), str)), "")
    for key in _VALUES:
        if key in inside and is_secret(str(named), inside[key]):
            made[key] = MASK
    return made


def _listed(values: Sequence[Any], name: str, depth: int) -> list[Any]:
    """The elements of a list, in which a pair or an option gives the next one its name."""
    if (
        len(values) == 2
        and isinstance(values[0], str)
        and is_secret(values[0], values[1])
    ):
        return [values[0], MASK]
    made = []
    before: object = ""
    for value in values:
        made.append(plain(value, option_name(before) or name, depth))
        before = value
    return made


def _items(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    # argparse's and jsonargparse's
    if type(value).__name__ in ("Namespace", "SimpleNamespace"):
        return dict(vars(value))
    return None


def _named(value: Any) -> str:
    kind = value
    if not hasattr(value, "__qualname__"):
        kind = type(value)
    return f"<{kind.__module__}.{kind.__qualname__}>"
