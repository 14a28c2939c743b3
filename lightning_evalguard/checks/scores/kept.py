"""Numbers that the steps of an evaluation keep in attributes: in lists, in dicts, in plain ones."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_PLACES = 64  # attributes that are followed
_NUMBERS = 4  # of one item: the values of a dict, the items of a tuple
_ITEMS = 4096  # of one list
_LIBRARIES = (
    "torch",
    "lightning",
    "pytorch_lightning",
    "torchmetrics",
    "builtins",
    "collections",
)
_UNREAD = frozenset(
    {"_parameters", "_buffers", "_modules", "_trainer", "_fabric", "_hparams"}
)
Owner = tuple[str, Any]


@dataclass
class Series:
    """One number a step, from one place.

    Attributes:
        name: Where it is kept: ``losses``, ``outputs[...]['acc']``, ``meter.val``.
        values: The numbers, in the order of the steps; they stay on the device until asked for.
        steps: In which step each was kept.
        stale: Numbers that lay there before the evaluation began.
        grows: Whether it is a list that grows, not an attribute that is written anew.
    """

    name: str
    values: list[Any] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    stale: list[Any] = field(default_factory=list)
    grows: bool = True


@dataclass
class _Place:
    """One list or attribute."""

    owner: Any
    path: tuple[str, ...]
    name: str
    length: int = 0  # of a list, when it was last looked at
    before: int = 0  # of a list, when the evaluation began
    mark: Any = None  # of an attribute: what stood there
    moves: bool = False
    broken: bool = False  # emptied while the steps ran
    series: Series | None = None  # of the plain numbers that are kept there

    def now(self) -> Any:
        """What stands there."""
        thing = vars(self.owner).get(self.path[0])
        for name in self.path[1:]:
            held = thing
            if type(thing) is not dict:
                held = _inside(thing)
            thing = held.get(name)
        return thing


class KeptValues:
    """Follows what the steps of one evaluation keep, in microseconds a step.

    All attributes are read when it begins and after each of the first two steps; from then on only
    those that moved, and once more all of them when the steps are over.

    Attributes:
        rests: Whether `look` has nothing to look at until then.
    """

    def __init__(self) -> None:
        self.begin(())

    def begin(self, owners: Sequence[Owner]) -> None:
        """The first step of an evaluation is about to run.

        Args:
            owners: The module and the user's callbacks, each with what its attributes' names begin
                with.
        """
        self._owners = owners
        self._places: dict[tuple[int, tuple[str, ...]], _Place] = {}
        self._series: dict[str, Series] = {}
        self._looks = 0
        self.rests = False
        self._moving: list[_Place] = []
        for place, value in self._all():
            self._first_look(place, value)

    def look(self, step: int, last: bool = False) -> None:
        """What was kept since the last look belongs to `step`."""
        self._looks += 1
        if self._looks <= 2 or last:
            for place, value in self._all():
                known = self._places.get((id(place.owner), place.path))
                if known is None and len(self._places) < _PLACES:
                    known = self._places.setdefault(
                        (id(place.owner), place.path), place
                    )
                if known is not None:
                    self._look_at(known, value, step)
            self.rests = self._looks >= 2 and not self._moving
            return
        for place in self._moving:
            if not place.broken:
                self._look_at(place, place.now(), step)

    def came(self) -> int:
        """How many items came into the lists so far, of those that any came into."""
        items = 0
        for place in self._moving:
            if not place.broken:
                items += place.length
        return items

    def series(self) -> list[Series]:
        """What was kept, of places that were not emptied meanwhile."""
        broken = tuple(p.name for p in self._places.values() if p.broken)
        return [
            s
            for s in self._series.values()
            if not (broken and s.name.startswith(broken))
        ]

    def lists(self) -> dict[str, tuple[int, int]]:
        """Each list: how many items it held when the evaluation began, and how many came."""
        whole = [p for p in self._places.values() if p.length and not p.broken]
        return {p.name: (p.before, p.length - p.before) for p in whole}

    def _all(self) -> Iterator[tuple[_Place, Any]]:
        for prefix, owner in self._owners:
            for name, value in list(vars(owner).items()):
                if name in _UNREAD or name.endswith("_hooks"):
                    continue
                for path, thing in _below((name,), value):
                    yield _Place(owner, path, prefix + _words(path)), thing

    def _first_look(self, place: _Place, value: Any) -> None:
        if len(self._places) >= _PLACES:
            return
        self._places[id(place.owner), place.path] = place
        if isinstance(value, (list, deque)):
            place.length = place.before = len(value)
            if 0 < place.length <= _ITEMS:
                for item in value:
                    for name, number in _numbers(item):
                        self._of(place.name + name).stale.append(_kept(number))
        else:
            place.mark = value

    def _look_at(self, place: _Place, value: Any, step: int) -> None:
        if isinstance(value, (list, deque)):
            n = len(value)
            if n == place.length:
                return
            if n < place.length:
                # emptied of what this evaluation kept
                place.broken = place.length > place.before
                place.length = place.before = 0
                for series in self._series.values():
                    if series.name.startswith(place.name):
                        series.stale.clear()
            if n > place.length:
                self._moves(place)
                if n <= _ITEMS:
                    for item in _last(value, n - place.length):
                        self._keep(place, item, step, grows=True)
            place.length = n
        elif value is not place.mark and value is not None:
            place.mark = value
            self._moves(place)
            self._keep(place, value, step, grows=False)

    def _moves(self, place: _Place) -> None:
        """Something was kept there: it is looked at after every step from now on."""
        if not place.moves:
            place.moves = True
            self._moving.append(place)

    def _keep(self, place: _Place, item: Any, step: int, grows: bool) -> None:
        if type(item) is float:
            series = place.series
            if series is None:
                series = place.series = self._of(place.name, grows)
            series.values.append(item)
            series.steps.append(step)
            return
        for name, number in _numbers(item):
            series = self._of(place.name + name, grows)
            series.values.append(_kept(number))
            series.steps.append(step)

    def _of(self, name: str, grows: bool = True) -> Series:
        return self._series.setdefault(name, Series(name, grows=grows))


def _below(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The lists and numbers at one attribute: itself, of a dict, of a plain object."""
    if isinstance(value, (list, deque)) or _is_number(value):
        yield path, value
    elif len(path) > 2 or path[0].startswith("_"):
        return
    elif isinstance(value, dict):
        if len(value) <= _PLACES:
            for key, inner in list(value.items()):
                if isinstance(key, str):
                    yield from _below((*path, key), inner)
    elif _is_plain(value):
        for key, inner in list(vars(value).items()):
            yield from _below((*path, key), inner)


def _is_plain(value: Any) -> bool:
    """Whether it is an object of a class of the user's own: a meter, a record."""
    kind = type(value)
    own = kind.__module__.partition(".")[0] not in _LIBRARIES
    return own and not isinstance(value, (nn.Module, type)) and _has_dict(value)


def _has_dict(value: Any) -> bool:
    try:
        return type(object.__getattribute__(value, "__dict__")) is dict
    except AttributeError:
        return False


def _last(items: Sequence[Any], n: int) -> Sequence[Any]:
    """The last `n` of a list that may be long: most often one came."""
    if n == 1:
        return (items[-1],)
    return list(items)[-n:]


def _inside(thing: Any) -> Mapping[str, Any]:
    """What is kept in a dict or in the attributes of an object."""
    held: Mapping[str, Any] = {}
    if isinstance(thing, dict):
        held = thing
    elif _has_dict(thing):
        held = vars(thing)
    return held


def _words(path: tuple[str, ...]) -> str:
    return ".".join(path)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return (
            value.numel() == 1
            and not value.is_complex()
            and not isinstance(value, nn.Parameter)
        )
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    return type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0


def _numbers(item: Any) -> list[tuple[str, Any]]:
    """The numbers of one item of a list."""
    if _is_number(item):
        return [("", item)]
    if isinstance(item, Mapping):
        inside = [(f"[{k!r}]", v) for k, v in item.items() if _is_number(v)]
    elif isinstance(item, (tuple, list)) and len(item) <= _NUMBERS:
        inside = [(f"[{i}]", v) for i, v in enumerate(item) if _is_number(v)]
    else:
        inside = []
    return inside[:_NUMBERS]


def _kept(number: Any) -> Any:
    if isinstance(number, Tensor):
        return number.detach().clone()
    return float(number)


def on_host(numbers: Sequence[Any]) -> list[float]:
    """The numbers as floats, in one copy for those on a device."""
    tensors = [n for n in numbers if isinstance(n, Tensor)]
    if len(tensors) == len(numbers) and _alike(tensors):
        return [float(n) for n in torch.stack(tensors).double().flatten().tolist()]
    tensors = [n.reshape(()).double() for n in tensors]
    copied: Iterator[float] = iter(())
    if tensors:
        copied = iter(torch.stack(tensors).tolist())
    floats: list[float] = []
    for number in numbers:
        if isinstance(number, Tensor):
            floats.append(next(copied))
        else:
            floats.append(float(number))
    return floats


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether they are plain numbers of one type on one device."""
    if not tensors:
        return False
    first = tensors[0]
    dtype, device, shape = first.dtype, first.device, first.shape
    return all(
        n.dtype is dtype and n.device == device and n.shape == shape for n in tensors
    )


def finite(numbers: Sequence[float]) -> bool:
    """Whether every one of them is a number."""
    return all(math.isfinite(n) for n in numbers)
