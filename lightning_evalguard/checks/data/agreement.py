"""Do the training and the evaluation set mean the same by their numbers?"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset

from lightning_evalguard.checks.data.loader_facts import EvaluatedSet
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.batches import is_array
from lightning_evalguard.data.loaders import Fact
from lightning_evalguard.instruments.rollback import attributes_of

_MAPPING = re.compile(
    r"(?:^|_)(?:id|idx|index|class(?:es)?|label|labels|cat|category|word|token|char|tag|target|name|s|i)?"
    r"_?(?:to|2)_?(?:idx|id|ix|index|label|labels|i|s|int|name|class|token|word|char)s?$|vocab|"
    r"(?:^|_)(?:classes_?|class_names|label_names|categories|labels_map|label_map|class_map|itos|"
    r"stoi)$",
    re.IGNORECASE,
)
_PADDING = re.compile(
    r"(?:^|_)pad(?:ding)?(?:_?(?:token)?_?(?:id|idx|index|ix|value))?$", re.I
)
_CLASSES = re.compile(
    r"^(?:num|n|nb|number_of)_?(?:classes|labels)$|^nclasses$", re.IGNORECASE
)
_NESTED = 3  # datasets in datasets, and the objects that they hold
_NAMES = 200_000  # of one mapping that is compared


def disagreements_of(one: EvaluatedSet, training: Iterable[Any]) -> list[Fact]:
    """What an evaluated set says of its numbers that the training sets say otherwise.

    Args:
        one: The evaluated set.
        training: The datasets that training reads, without their views.
    """
    theirs = [dict(_facts_of(dataset, 0)) for dataset in training]
    found: dict[str, Fact] = {}
    for part in _loaders.parts(one.loader) or ():
        for name, mine in _facts_of(part.root, 0):
            others = [other[name] for other in theirs if name in other]
            differences = [_difference(name, mine, other) for other in others]
            # of several training sets one agrees: no fault
            if differences and all(differences):
                found.setdefault(name, one.fact(*differences[0]))  # type: ignore[misc]
    return list(found.values())[:1] or []


def _facts_of(dataset: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Names and numbers that a dataset, or an object that it holds, gives to things."""
    for name, value in _attributes(dataset):
        if _MAPPING.search(name):
            mapping = _mapping(value)
            if mapping is not None:
                yield name, mapping
                continue
        if (_PADDING.search(name) or _CLASSES.search(name)) and type(value) is int:
            yield name, value
        elif depth < _NESTED and _holds_facts(value):
            yield from _facts_of(value, depth + 1)


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    """Plain attributes of an object and of its class; no code of the class runs."""
    if isinstance(thing, Dataset):
        held = dict(vars(thing))
    else:
        held = dict(attributes_of(thing, type(thing)) or {})
    for name in (
        "classes",
        "class_to_idx",
        "CLASSES",
        "vocab",
        "num_classes",
        "pad_id",
    ):
        value = inspect.getattr_static(type(thing), name, None)
        if name not in held and isinstance(value, (list, tuple, dict, int)):
            held[name] = value
    yield from held.items()


def _holds_facts(value: Any) -> bool:
    if isinstance(value, Dataset):
        return True
    return not isinstance(value, (dict, list, tuple, set)) and bool(
        attributes_of(value, type(value))
    )


def _mapping(value: Any) -> dict[Any, int] | None:
    """Index by name, of a mapping in either direction or a list of names; None for others."""
    if (
        is_array(value)
        and value.ndim == 1
        and value.dtype.kind in "UO"
        and len(value) <= _NAMES
    ):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        if not 1 < len(value) <= _NAMES or not all(type(v) is str for v in value):
            return None
        numbers = {name: i for i, name in enumerate(value)}
        if len(numbers) > 1:
            return numbers
        return None
    if not isinstance(value, Mapping) or not 1 < len(value) <= _NAMES:
        return None
    items = list(value.items())
    if all(type(k) is int and type(v) is str for k, v in items):
        items = [(v, k) for k, v in items]
    if not all(type(v) is int for _, v in items):
        return None
    if len({v for _, v in items}) != len(items):
        return None
    return dict(items)


def _difference(name: str, mine: Any, theirs: Any) -> tuple[str, str, bool] | None:
    """Fact, remedy and certainty; None where both agree."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return _of_mappings(name, mine, theirs)
    if type(mine) is not int or type(theirs) is not int or mine == theirs:
        return None
    remedy = f"Give both sets one `{name}`."
    return (
        f"has `{name}` {mine}, expected {theirs} as the training set has",
        remedy,
        False,
    )


def _of_mappings(
    name: str, mine: dict[Any, int], theirs: dict[Any, int]
) -> tuple[str, str, bool] | None:
    common = [key for key in mine if key in theirs]
    remedy = f"Make `{name}` once, from the training set, and pass it to both."
    differ = [key for key in common if mine[key] != theirs[key]]
    if differ:
        key = differ[0]
        number = ""
        if len(differ) > 1:
            number = f", {len(differ)} of {len(common)} names differ"
        fact = (
            f"gives {key!r} the index {mine[key]} in `{name}`, expected {theirs[key]} as in the "
            f"training set{number}"
        )
        return fact, remedy, True
    unknown = [key for key in mine if key not in theirs]
    if common and unknown and len(unknown) < len(mine):
        fact = (
            f"has {unknown[0]!r} in `{name}`, which the training set does not have "
            f"({len(unknown)} of {len(mine)} names)"
        )
        return fact, remedy, False
    return None
