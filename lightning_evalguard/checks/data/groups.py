"""Does one patient, speaker or document stand on both sides of the split?"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from lightning_evalguard.checks.data.history import Side
from lightning_evalguard.checks.data.loader_facts import EvaluatedSet, workers
from lightning_evalguard.data import loaders as _loaders
from lightning_evalguard.data.batches import is_array
from lightning_evalguard.data.loaders import Fact, Part
from lightning_evalguard.data.samples import Budget, rows, spread, undisturbed

_WHO = re.compile(
    r"^_?(patient|subject|subj|speaker|spk|user|document|doc|video|case|participant|person|"
    r"individual|session|recording|author|writer|scene|clip|study|customer|client|player|animal|"
    r"identity|household|donor|singer|artist|group)s?"
    r"(_?(id|idx|index|ix|name|number|num|no|nr|key|code|uid|label|of_?\w+)s?)?$|^_?(pid|mrn|uid)s?$",
    re.IGNORECASE,
)
# as it stands in the name of a file: sub-01, patient_007, speaker12
_IN_A_PATH = re.compile(
    r"(?:^|(?<=[/\\_.\- ]))(?:patient|subject|subj|sub|speaker|spk|user|participant|person|donor|"
    r"singer|session|recording|document|doc|video|case|study|animal|pid)s?[_\- ]?"
    r"(?=\w*\d)[A-Za-z0-9]+",
    re.IGNORECASE,
)
_SAMPLES_OF_ONE = 2  # on average: numbers of single files are no groups
_FILE_NAMES = "file names"
_FEWEST = 3  # groups of a training set that are no fold, sex or site
_LABELS = 16  # groups whose labels are compared
_NAME = 64  # letters of a group's name
_NUMBERS = 20_000  # groups that are looked at one by one

GroupsAsked = str | Callable[..., Any] | None


class Grouped(NamedTuple):
    """The groups of a set.

    Attributes:
        name: Of the attribute, the column or the callable that gives them.
        places: Samples of each group, as their places in the loader's dataset.
        whole: Whether every sample was looked at.
    """

    name: str
    places: dict[Hashable, list[int]]
    whole: bool


def shared_groups(
    one: EvaluatedSet, side: Side, asked: GroupsAsked, reads: int
) -> tuple[list[Fact], str]:
    """The groups of an evaluated set that the training set has too, and why none could be had.

    Args:
        one: The evaluated set.
        side: The training set.
        asked: What the user says that tells samples apart.
        reads: How many samples of each set may be read for it.
    """
    mine = _grouped(_loaders.parts(one.loader), one.loader.dataset, asked, reads)
    theirs = _grouped(side.parts, side.dataset, asked, reads)
    if asked is None and mine is theirs is None and not workers(one.loader):
        key = _own_key(one.loader.dataset)
        if key and not side.workers and key == _own_key(side.dataset):
            mine = _by_reading(one.loader.dataset, key, reads)
            theirs = _by_reading(side.dataset, key, reads)
    if mine is None or theirs is None:
        why = f"groups={_named(asked)!r} gives no group for the samples of `{one.name}`"
        return [], why if asked is not None else ""
    if mine.name != theirs.name or (asked is None and not _tells_groups(theirs)):
        return [], ""
    if mine.name == _FILE_NAMES and not (_come_several(mine) and _come_several(theirs)):
        return [], ""
    shared = [group for group in mine.places if group in theirs.places]
    if not shared or (asked is None and _are_labels(mine, one.loader.dataset)):
        return [], ""
    samples = sum(len(mine.places[group]) for group in shared)
    few = ", ".join(repr(group) for group in shared[:3]) + (
        ", ..." if len(shared) > 3 else ""
    )
    least = "at least "
    if mine.whole and theirs.whole:
        least = ""
    n = _loaders.length(one.loader.dataset)
    by = mine.name if mine.name == _FILE_NAMES else f"`{mine.name}`"
    fact = (
        f"{least}{len(shared)} of its {len(mine.places)} groups by {by} ({few}), with "
        f"{samples} of its {n} samples, are in {side.words} too, expected none"
    )
    remedy = f"Split by {by}, as sklearn's GroupShuffleSplit does."
    return [one.fact(fact, remedy, certain=asked is not None)], ""


def _are_labels(mine: Grouped, dataset: Any) -> bool:
    """Whether the groups are what the model tells apart: who speaks, whose face it is."""
    labels: dict[Hashable, set[Hashable]] = {}
    with undisturbed(dataset):
        for group, places in list(mine.places.items())[:_LABELS]:
            for at in places[:2]:
                label = _label_of(dataset[at], mine.name)
                if label is None:
                    return False
                labels.setdefault(group, set()).add(label)
    each = [next(iter(found)) for found in labels.values() if len(found) == 1]
    return len(set(each)) == len(labels) >= _FEWEST


def _label_of(sample: Any, by: str) -> Hashable | None:
    """The one label of a sample; of a dictionary it may be what it is grouped by."""
    if isinstance(sample, Mapping):
        single = [key for key, value in sample.items() if _is_single(value)]
        others = [key for key in single if key != by] or single
        if len(others) != 1:
            return None
        return _plain(sample[others[0]])
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        return None
    return _plain(sample[1])


def _come_several(of: Grouped) -> bool:
    """Whether a group has several samples: a number that each file has for itself tells none."""
    sizes = [len(places) for places in of.places.values()]
    return sum(sizes) >= _SAMPLES_OF_ONE * len(sizes)


def _tells_groups(theirs: Grouped) -> bool:
    """Whether an attribute that only sounds like it tells who a sample is of."""
    sizes = [len(places) for places in theirs.places.values()]
    return len(sizes) >= _FEWEST and max(sizes) <= sum(sizes) / 2


def _grouped(
    parts: Sequence[Part], dataset: Any, asked: GroupsAsked, reads: int
) -> Grouped | None:
    if not parts:
        return None
    if not callable(asked):
        found = _by_attribute(parts, asked)
        if found is not None:
            return found
    if asked is None:
        return _by_file_names(parts)
    return _by_reading(dataset, asked, reads)


def _by_attribute(parts: Sequence[Part], asked: str | None) -> Grouped | None:
    name, places = "", dict[Hashable, list[int]]()
    for part in parts:
        column = next(_columns(part.root, asked), None)
        if column is None or (name and column[0] != name):
            return None
        name, values = column
        for index, at in zip(part.indices.tolist(), part.at.tolist(), strict=True):
            group = _plain(values(index))
            if group is not None:
                places.setdefault(group, []).append(at)
    if not places:
        return None
    return Grouped(name, places, whole=True)


def _by_file_names(parts: Sequence[Part]) -> Grouped | None:
    """By what stands in the names of all files, with the folder above it.

    For train/sub-01 is another one than val/sub-01.
    """
    places: dict[Hashable, list[int]] = {}
    for part in parts:
        files = rows(part.root, part.indices)
        if files is None or not isinstance(files.values, list):
            return None
        for index, at in zip(part.indices.tolist(), part.at.tolist(), strict=True):
            named = _IN_A_PATH.search(files.values[index])
            if named is None:
                return None
            places.setdefault(files.values[index][: named.end()], []).append(at)
    if not places:
        return None
    return Grouped(_FILE_NAMES, places, whole=True)


def _columns(
    root: Any, asked: str | None
) -> Iterator[tuple[str, Callable[[int], Any]]]:
    """What a dataset holds that gives the group of each of its samples, by name."""
    if type(root) in (list, tuple):
        yield from _keys_of(root, asked)
    if not isinstance(root, Dataset):
        return
    n = _loaders.length(root)
    for name, value in vars(root).items():
        if _is_wanted(name, asked) and _is_sequence(value) and len(value) == n:
            yield name, value.__getitem__
        elif _is_frame(value) and len(value) == n:
            for column in value.columns:
                if _is_wanted(column, asked):
                    yield str(column), value[column].tolist().__getitem__
        elif isinstance(value, (list, tuple)) and value and len(value) == n:
            yield from _keys_of(value, asked)


def _keys_of(
    samples: Sequence[Any], asked: str | None
) -> Iterator[tuple[str, Callable[[int], Any]]]:
    """The same of a list of dictionaries, one a sample."""
    if not samples or not isinstance(samples[0], Mapping):
        return
    for key in samples[0]:
        if _is_wanted(key, asked):
            yield key, lambda i, key=key: samples[i].get(key)  # type: ignore[misc]


def _is_wanted(name: Any, asked: str | None) -> bool:
    if asked is not None:
        return isinstance(name, str) and name == asked
    return isinstance(name, str) and _WHO.match(name) is not None


def _is_sequence(value: Any) -> bool:
    if isinstance(value, Tensor) or is_array(value):
        return bool(value.ndim == 1)
    return isinstance(value, (list, tuple)) or _is_series(value)


def _is_series(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.Series)


def _is_frame(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _own_key(dataset: Any) -> str | None:
    """The key of a sample that sounds like a group, and holds a number or a short name."""
    if not _loaders.length(dataset):
        return None
    with undisturbed(dataset):
        sample = dataset[0]
    parts = sample if isinstance(sample, (list, tuple)) else [sample]
    for part in parts:
        for key, value in part.items() if isinstance(part, Mapping) else ():
            if _is_wanted(key, None) and _is_single(value):
                return str(key)
    return None


def _is_single(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _NAME
    return isinstance(value, (Tensor, int)) and getattr(value, "ndim", 0) == 0


def _by_reading(dataset: Any, asked: Any, reads: int) -> Grouped | None:
    """By a callable of the user's, or the key of a sample."""
    n = _loaders.length(dataset)
    if not n:
        return None
    places: dict[Hashable, list[int]] = {}
    budget, looked = Budget(reads), 0
    with undisturbed(dataset):
        for k in range(min(n, _NUMBERS)):
            if not budget.read():
                break
            at = spread(k, n)
            looked += 1
            group = _plain(_group_of(dataset[at], asked))
            if group is not None:
                places.setdefault(group, []).append(at)
    if not places:
        return None
    return Grouped(_named(asked), places, looked == n)


def _group_of(sample: Any, asked: Any) -> Any:
    if callable(asked):
        return asked(sample)
    parts = sample
    if not isinstance(sample, (list, tuple)):
        parts = [sample]
    for part in parts:
        if isinstance(part, Mapping) and asked in part:
            return part[asked]
        held = getattr(part, "__dict__", {}) if not isinstance(part, Tensor) else {}
        if asked in held:
            return held[asked]
    return None


def _plain(value: Any) -> Hashable | None:
    """A group as what compares and hashes; None where there is none."""
    if isinstance(value, Tensor) or is_array(value):
        value = value.tolist()
    if isinstance(value, list):
        value = tuple(value)
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, Hashable):
        return value
    return repr(value)


def _named(asked: GroupsAsked) -> str:
    if isinstance(asked, str):
        return asked
    return getattr(asked, "__name__", "groups")
