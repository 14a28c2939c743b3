"""Which tensors of this process were loaded, by which call, and which a call left out?

Loads happen before a Trainer exists, so they are watched from the import of the callback on. The
place is the class of what ``nn.Module.load_state_dict`` returns: it is made once a load is over,
so that no method is patched, no signature changes and no traceback gets a frame of ours.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch

from lightning_evalguard.checks.weights import files
from lightning_evalguard.instruments.source import (
    LIBRARIES,
    Site,
    nearest,
    owner_of,
    site_of,
)
from lightning_evalguard.instruments.variables import variable, variables
from lightning_evalguard.model.identity import Identity

_NAMED = 3  # keys that a message names
_MANY = 1024  # tensors that are remembered before those gone are looked for
_PROBED = 16  # values of a tensor that are kept to see whether it was written
_MOST_PROBED = 256  # tensors of a load of which such values are kept
_LOAD_CODE = nn.Module.load_state_dict.__code__
_FLAG = "_is_hf_initialized"  # transformers 5 puts it on each parameter that it loaded


@dataclass(frozen=True)
class Load:
    """One call of ``load_state_dict``.

    Attributes:
        site: The user's line, where there is one.
        strict: What was passed.
        given: How many keys the state dict had.
        expected: How many keys the module has.
        matched: How many of them were loaded.
        elements: How many elements those have.
        expected_elements: How many elements all keys of the module have.
        unused: Some keys of the state dict that the module does not have.
        prefix: What to take off (``"-model."``) or to put before (``"+net."``) each key so that
            they match; empty where neither does it.
        own: For how many keys the state dict held the module's very own tensors.
        hyper_parameters: What the checkpoint says beside the weights, where that is known.
        builds_the_module: Whether the checkpoint's hyper-parameters built the module, too.
        written: How often all of the module's tensors had been written when it was over.
    """

    site: Site | None
    strict: bool
    given: int
    expected: int
    matched: int
    elements: int
    expected_elements: int
    unused: tuple[str, ...] = ()
    prefix: str = ""
    own: int = 0
    hyper_parameters: Mapping[str, Any] | None = None
    builds_the_module: bool = False
    written: int = 0

    @property
    def changed_nothing(self) -> bool:
        """Whether all that it gave the module was the module's own."""
        return bool(self.own) and not self.matched

    @property
    def missed_the_model(self) -> bool:
        """Whether next to nothing of the module was in the state dict, and the reverse."""
        if not self.expected:
            return False
        if not self.matched:
            return True
        few = 0.1
        of_model = self.elements < few * self.expected_elements
        return of_model and self.matched < few * self.given


@dataclass(frozen=True)
class _Mark:
    """What is known of one tensor.

    Attributes:
        same: Recognises it.
        load: The load that wrote it, or should have.
        loaded: Whether that wrote it.
        version: Its count of writes when that was over.
        probe: Some of its values then; of a large load's tensors some have none.
        meant: Whether the state dict had a key for it, by another name.
    """

    same: Identity
    load: Load
    loaded: bool
    version: int
    probe: list[float] | None
    meant: bool = False


class _Marks:
    """Marks by tensor, which they do not keep alive."""

    def __init__(self) -> None:
        self._at: dict[int, _Mark] = {}
        self._many = _MANY

    def put(
        self,
        same: Identity,
        tensor: Tensor,
        load: Load,
        loaded: bool,
        meant: bool = False,
        probed: bool = True,
    ) -> None:
        kept = None
        if probed or not loaded:
            kept = probe(tensor)
        mark = _Mark(same, load, loaded, version_of(tensor), kept, meant)
        known = self.of(tensor)
        if not loaded and known is not None and _is_to_blame(known, mark, tensor):
            return
        self._at[id(tensor)] = mark

    def of(self, tensor: Tensor) -> _Mark | None:
        mark = self._at.get(id(tensor))
        if mark is not None and mark.same(tensor):
            return mark
        return None

    def drop_those_gone(self) -> None:
        """Forget tensors that are no more, each time that there are twice as many."""
        if len(self._at) > self._many:
            self._at = {
                key: mark for key, mark in self._at.items() if not mark.same.gone
            }
            self._many = max(_MANY, 2 * len(self._at))


_marks = _Marks()
_loads_of: dict[int, tuple[weakref.ref[nn.Module], Load]] = {}


def loaded(tensor: Tensor) -> bool:
    """Whether a load wrote `tensor`, and nothing since."""
    mark = _marks.of(tensor)
    if mark is not None and mark.loaded:
        return not _written(mark, tensor)
    return vars(tensor).get(_FLAG) is True


def touched(tensor: Tensor) -> bool:
    """Whether a load wrote `tensor`, whatever happened to it since."""
    mark = _marks.of(tensor)
    return (mark is not None and mark.loaded) or vars(tensor).get(_FLAG) is True


def writes(tensor: Tensor) -> int:
    """How often `tensor` was written since it was loaded, or at all."""
    mark = _marks.of(tensor)
    since = 0
    if mark is not None and mark.loaded:
        since = mark.version
    return max(0, version_of(tensor) - since)


def brought(tensor: Tensor) -> tuple[Load, int, list[float] | None] | None:
    """The load that wrote `tensor`, its count of writes and some of its values then."""
    mark = _marks.of(tensor)
    if mark is None or not mark.loaded:
        return None
    return mark.load, mark.version, mark.probe


def missed(tensor: Tensor) -> Load | None:
    """The load that should have written `tensor` and did not; None where it was written since."""
    mark = _marks.of(tensor)
    if mark is not None and not mark.loaded and not _written(mark, tensor):
        return mark.load
    return None


def set_by_hand(tensor: Tensor) -> bool:
    """Whether something wrote `tensor` after a load had left it out."""
    mark = _marks.of(tensor)
    return mark is not None and not mark.loaded and _written(mark, tensor)


def _is_to_blame(known: _Mark, later: _Mark, tensor: Tensor) -> bool:
    """Whether an earlier load that left a tensor out is the one that should have written it.

    That is the one whose state dict has it by another name, else the one that loaded most; of
    equals the first.
    """
    if known.loaded or _written(known, tensor):
        return False
    if known.meant != later.meant:
        return known.meant
    return known.load.elements >= later.load.elements


def _written(mark: _Mark, tensor: Tensor) -> bool:
    # a smaller count is that of a tensor that was swapped in: a converted copy
    if version_of(tensor) > mark.version:
        return True
    return mark.probe is not None and mark.probe != probe(tensor)


def loads_of(module: nn.Module) -> Load | None:
    """The last load of `module` as a whole."""
    ref, load = _loads_of.get(id(module), (None, None))
    if ref is not None and ref() is module:
        return load
    return None


def written(module: nn.Module) -> int:
    """How often all tensors were written that `module` saves."""
    return sum(version_of(tensor) for _, (tensor, _, _) in _saved(module))


def version_of(tensor: Tensor) -> int:
    """``_version``, -1 for a tensor that has none."""
    try:
        return tensor._version
    except RuntimeError:
        return -1


def probe(tensor: Tensor) -> list[float] | None:
    """Some values, spread over the tensor; None where they cannot be read."""
    try:
        with torch.no_grad():
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // _PROBED)
            values: list[float] = flat[::step][:_PROBED].tolist()
    except (RuntimeError, NotImplementedError, TypeError):
        return None
    # a nan equals nothing, and itself
    return [repr(v) if v != v else v for v in values]  # type: ignore[misc]


def watch_loads() -> None:
    """Watch the loads of this process from now on; calling it again does nothing."""
    made: Any = _torch._IncompatibleKeys
    if getattr(made, "__evalguard__", False):
        return

    class _IncompatibleKeys(made):  # type: ignore[misc]
        """torch's own, which says that it was made."""

        __slots__ = ()
        __evalguard__ = True

        def __new__(cls, missing_keys: list[str], unexpected_keys: list[str]) -> Any:
            keys = super().__new__(cls, missing_keys, unexpected_keys)
            frame = sys._getframe(1)
            if frame.f_code is _LOAD_CODE:
                _over(frame, missing_keys, unexpected_keys)
            return keys

    _IncompatibleKeys.__module__, _IncompatibleKeys.__doc__ = (
        made.__module__,
        made.__doc__,
    )
    _IncompatibleKeys.__qualname__ = made.__qualname__  # it pickles by that name
    _torch._IncompatibleKeys = _IncompatibleKeys  # type: ignore[misc]


def _over(frame: FrameType, missing: list[str], unexpected: list[str]) -> None:
    """A load of the module in `frame` is over."""
    try:
        here = variables(frame)
        _record(
            here["self"],
            here["state_dict"],
            bool(here["strict"]),
            missing,
            unexpected,
            frame,
        )
    except Exception as error:  # noqa: BLE001 - a load of the user's must not fail by ours
        files.problems.append(
            f"a load of weights was not understood: {type(error).__name__}: {error}"
        )


def _record(
    module: nn.Module,
    given: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    frame: FrameType,
) -> None:
    places = dict(_saved(module))
    tensors = {name: tensor for name, (tensor, _, _) in places.items()}
    kept = set() if variable(frame, "assign") else _own(tensors, given)
    left_out = {*missing, *kept}
    matched = [name for name in tensors if name not in left_out]
    sizes = {name: _size(tensor) for name, tensor in tensors.items()}
    load = Load(
        _site(frame),
        strict,
        len(given),
        len(tensors),
        len(matched),
        sum(sizes[name] for name in matched),
        sum(sizes.values()),
        tuple(unexpected[:_NAMED]),
        _prefix(set(missing) & tensors.keys(), unexpected),
        len(kept),
        files.stored_hyper_parameters(given.values()),
        _builds_the_module(frame.f_back),
        sum(map(version_of, tensors.values())),
    )
    key = id(module)
    _loads_of[key] = weakref.ref(module, lambda _: _loads_of.pop(key, None)), load
    others = _ends_of(unexpected)
    step = -(-len(places) // _MOST_PROBED)
    for i, (name, (tensor, part, own)) in enumerate(places.items()):
        written = name not in left_out
        if written or not touched(tensor):
            same, meant = (
                Identity(tensor, part, own),
                not others.isdisjoint(_ends(name)),
            )
            _marks.put(same, tensor, load, written, meant, probed=i % step == 0)
    _marks.drop_those_gone()


def _ends_of(keys: Iterable[str]) -> set[str]:
    """What keys end in, without their last part alone: ``weight`` names nothing."""
    return {end for key in keys for end in _ends(key)}


def _ends(key: str) -> Iterator[str]:
    """A key, and what is left of it below one module after the other.

    Example:
        >>> list(_ends("net.fc.bias"))
        ['net.fc.bias', 'fc.bias']
    """
    yield key
    parts = key.split(".")
    for n in range(1, len(parts) - 1):
        yield ".".join(parts[n:])


def _saved(module: nn.Module) -> Iterator[tuple[str, tuple[Tensor, nn.Module, str]]]:
    """Parameters and persistent buffers with their places, by their keys in a state dict."""
    for owner, part in module.named_modules(remove_duplicate=False):
        prefix = ""
        if owner:
            prefix = f"{owner}."
        transient = vars(part).get("_non_persistent_buffers_set", ())
        for name, tensor in part.named_parameters(
            recurse=False, remove_duplicate=False
        ):
            yield prefix + name, (tensor, part, name)
        for name, tensor in part.named_buffers(recurse=False, remove_duplicate=False):
            if name not in transient:
                yield prefix + name, (tensor, part, name)


def _own(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> set[str]:
    """Keys for which the state dict holds the module's own memory: loading that writes nothing.

    What ``state_dict()`` returned and an ``update`` of it left alone.
    """
    own = set()
    for name, tensor in tensors.items():
        theirs = given.get(name)
        if (
            isinstance(theirs, Tensor)
            and _size(tensor)
            and _is_same_memory(tensor, theirs)
        ):
            own.add(name)
    return own


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    try:
        return one.device == other.device and one.data_ptr() == other.data_ptr() != 0
    except RuntimeError:  # a tensor without memory
        return False


def _builds_the_module(caller: FrameType | None) -> bool:
    """Whether it is Lightning's ``load_from_checkpoint`` that loads."""
    return caller is not None and caller.f_code.co_name == "_load_state"


def _size(tensor: Tensor) -> int:
    lazy = isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))
    if lazy:
        return 0
    return tensor.numel()


def _site(frame: FrameType) -> Site | None:
    """The user's own line, else that of the library that loads."""
    outer: FrameType | None = frame
    while outer is not None and owner_of(outer.f_code.co_filename) != "user":
        outer = outer.f_back
    outer = outer or nearest(frame, LIBRARIES)
    if outer is None:
        return None
    return site_of(outer)


def _prefix(missing: set[str], unexpected: list[str]) -> str:
    """The prefix by which all the given keys, or all the missing ones, come to match."""
    if not missing or not unexpected:
        return ""
    enough = min(len(missing), len(unexpected))
    parts = unexpected[0].split(".")
    for n in range(1, len(parts)):
        prefix = ".".join(parts[:n]) + "."
        stripped = {
            key.removeprefix(prefix) for key in unexpected if key.startswith(prefix)
        }
        if len(stripped & missing) >= enough:
            return f"-{prefix}"
    for name in missing:
        if name.endswith(f".{unexpected[0]}"):
            prefix = name.removesuffix(unexpected[0])
            if len({prefix + key for key in unexpected} & missing) >= enough:
                return f"+{prefix}"
    return ""
