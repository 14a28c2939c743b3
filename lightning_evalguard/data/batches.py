"""What a batch is made of: the one place that says where its tensors are and how many samples.

No code of the user's runs but the iteration of a mapping: attributes are read from ``__dict__``
and slots, never through ``__getattr__``.
"""

from __future__ import annotations

import copy
import itertools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_evalguard.instruments.rollback import attributes_of

_DEPTH = 8
MANY = 10_000  # items of one container that are looked into
_LEAVES = 256  # of one sample
_FEW = 16  # tensors of a plain batch
_PLAIN = frozenset({str, bytes, bool, int, float, complex})
_SEQUENCES = (list, tuple, deque, set, frozenset)
_CLOSED = (torch.Size, torch.dtype, torch.device, types.FunctionType, type, nn.Module)
NUMBER_TYPES = {
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
}


# --- what stands in it --------------------------------------------------------------------------


def leaves(batch: Any, most: int = _LEAVES) -> Iterator[Any]:
    """The tensors, arrays, images, texts and numbers of a sample or a batch, in order."""
    return itertools.islice(_leaves(batch), most)


def _leaves(batch: Any) -> Iterator[Any]:
    for piece in pieces(batch):
        if is_column(piece):
            yield from piece
        elif type(piece) is PackedSequence:
            yield piece.data
            yield piece.batch_sizes
        else:
            yield piece


def tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch or an output, in order.

    Of a packed sequence they are its data and its order: the sizes always stay on the host.
    """
    if isinstance(batch, Tensor):
        return [batch]
    if batch is None:
        return []
    if _is_row_of_tensors(batch):
        return list(batch)
    return list(_tensors(pieces(batch)))


def _is_row_of_tensors(batch: Any) -> bool:
    """Whether a batch is a plain list or tuple of nothing but tensors: most are."""
    if type(batch) not in (list, tuple) or len(batch) > _FEW:
        return False
    for part in batch:  # noqa: SIM110 - half the time of `all`
        if not isinstance(part, Tensor):
            return False
    return True


def moved_tensors(batch: Any) -> list[Tensor]:
    """The `tensors` that Lightning moves to the device: not those of objects without ``to``."""
    return list(_tensors(pieces(batch, enters=_is_moved)))


def _tensors(found: Iterable[Any]) -> Iterator[Tensor]:
    for piece in found:
        if isinstance(piece, Tensor):
            yield piece
        elif type(piece) is PackedSequence:
            order = (piece.sorted_indices, piece.unsorted_indices)
            yield piece.data
            yield from (t for t in order if t is not None)


def pieces(batch: Any, enters: Callable[[Any], bool] = lambda _: True) -> Iterator[Any]:
    """What a batch is made of, in order: its leaves, with a list of plain values as one piece.

    Args:
        batch: A batch, a sample, an output.
        enters: Whether to look into an object that is no container.
    """
    return _pieces(batch, _DEPTH, (), enters)


def _pieces(
    thing: Any, depth: int, above: tuple[Any, ...], enters: Callable[[Any], bool]
) -> Iterator[Any]:
    if (
        isinstance(thing, Tensor)
        or type(thing) in _PLAIN
        or type(thing) is PackedSequence
    ):
        yield thing
        return
    if is_array(thing) or is_image(thing) or isinstance(thing, (*_PLAIN, PurePath)):
        yield thing
        return
    if not depth or any(thing is outer for outer in above):
        return
    inside = _inside(thing, enters)
    if inside is None:
        return
    if is_column(inside):
        yield inside
        return
    within = (*above, thing)
    for part in inside:
        if isinstance(part, Tensor):
            yield part
        else:
            yield from _pieces(part, depth - 1, within, enters)


def _inside(
    thing: Any, enters: Callable[[Any], bool]
) -> list[Any] | tuple[Any, ...] | None:
    """The parts of a container or of an object that holds some; None for what is closed."""
    kind = type(thing)
    if kind is list or kind is tuple:
        parts: list[Any] | tuple[Any, ...] = thing
        if len(thing) <= MANY or is_column(thing):
            return parts
        return None
    if isinstance(thing, _CLOSED):
        return None
    if isinstance(thing, Mapping):
        if len(thing) <= MANY:
            return list(thing.values())
        return None
    if isinstance(thing, _SEQUENCES):
        if len(thing) <= MANY:
            return list(thing)
        return None
    if not enters(thing):
        return None
    return list(plain_attributes(thing).values())


def plain_attributes(thing: Any) -> dict[str, Any]:
    """The attributes of a plain object, from its ``__dict__`` and its slots."""
    kind = type(thing)
    held = dict(attributes_of(thing, kind) or {})
    if _is_plain_object(kind):
        for name, member in _slots(kind):
            with suppress(AttributeError):  # not set
                held.setdefault(name, member.__get__(thing, kind))
    return held


def _slots(kind: type) -> Iterator[tuple[str, types.MemberDescriptorType]]:
    for base in reversed(kind.__mro__):
        for name, member in vars(base).items():
            if type(member) is types.MemberDescriptorType:
                yield name, member


def _is_plain_object(kind: type) -> bool:
    """Whether a class is written in Python, by who may put tensors into its slots."""
    package = kind.__module__.partition(".")[0]
    return package not in ("builtins", "torch", "numpy") and _defines(kind, "__slots__")


def _defines(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in kind.__mro__)


def _is_moved(thing: Any) -> bool:
    kind = type(thing)
    return _defines(kind, "__dataclass_fields__") or _defines(kind, "to")


def is_column(thing: Any) -> bool:
    """Whether it is a list of plain values: texts, names, numbers."""
    return (
        type(thing) in (list, tuple)
        and bool(thing)
        and _PLAIN.issuperset(map(type, thing))
    )


def is_array(thing: Any) -> bool:
    """Whether it is an array or a number of numpy's."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(thing, (numpy.ndarray, numpy.generic))


def is_image(thing: Any) -> bool:
    """Whether it is an image of PIL's."""
    kind = type(thing)
    return _defines(kind, "tobytes") and _defines(kind, "getbands")


# --- how many samples ---------------------------------------------------------------------------


class Count(NamedTuple):
    """How many samples a batch holds.

    Attributes:
        samples: Their number; None where nothing in the batch tells.
        agreed: Whether all that could tell gives this number.
    """

    samples: int | None
    agreed: bool


def sample_count(batch: Any) -> int | None:
    """How many samples a batch holds; None where nothing in it tells."""
    if _is_row_of_tensors(batch):
        for part in batch:
            if part.dim():
                return int(part.size(0))
        return None
    return count_of(batch).samples


def sized(batch: Any, most: int) -> tuple[int, list[Tensor]]:
    """How many samples a batch holds, 0 where nothing in it tells; and its tensors, up to `most`.

    Most batches are plain ones, and one look at them tells both.
    """
    if not _is_row_of_tensors(batch):
        return sample_count(batch) or 0, tensors(batch)[:most]
    samples = 0
    for part in batch:
        if part.dim():
            samples = part.size(0)
            break
    return samples, list(batch[:most])


def count_of(batch: Any) -> Count:
    """How many samples a batch holds.

    In this order: the number of graphs that a graph batch declares; the length of dim 0 that all
    tensors share, or else all arrays, or else all lists of texts and numbers; for a list of inputs
    beside a list of targets, an item a sample, their length; the length that the tensors share
    which stand beside an object with tensors of its own, as the targets of graphs do; the length of
    the first tensor.
    """
    if isinstance(batch, Tensor):
        if batch.dim():
            return Count(batch.size(0), True)
        return Count(None, False)
    if _is_row_of_tensors(batch):
        lengths = [part.size(0) for part in batch if part.dim()]
        if not lengths:
            return Count(None, False)
        return Count(lengths[0], lengths.count(lengths[0]) == len(lengths))
    declared = graph_count(batch)
    if declared is not None:
        return Count(declared, True)
    for lengths in _lengths(pieces(batch)):
        if lengths:
            agreed = len(set(lengths)) == 1
            if agreed:
                return Count(lengths[0], True)
            return Count(_items(batch) or _beside_objects(batch) or lengths[0], False)
    return Count(None, False)


def common_length(batch: Any) -> int | None:
    """Length of dim 0 that all tensors of a batch share, an entry a sample; else None."""
    if graph_count(batch) is not None:
        return None
    found = list(pieces(batch))
    if any(type(piece) is PackedSequence for piece in found):
        return None
    lengths = set(_lengths(found)[0])
    if len(lengths) != 1:
        return None
    return lengths.pop()


def _lengths(found: Iterable[Any]) -> tuple[list[int], list[int], list[int]]:
    """Lengths of the tensors, of the arrays, and of the lists of plain values."""
    of_tensors = list[int]()
    of_arrays = list[int]()
    of_lists = list[int]()
    for piece in found:
        if isinstance(piece, Tensor):
            if piece.dim():
                of_tensors.append(piece.size(0))
        elif type(piece) is PackedSequence:
            # its longest sequences first, all at step 0
            of_tensors.append(int(piece.batch_sizes[0]))
        elif is_column(piece):
            of_lists.append(len(piece))
        elif is_array(piece) and piece.ndim:
            of_arrays.append(len(piece))
    return of_tensors, of_arrays, of_lists


def _parts(batch: Any) -> list[Any]:
    """What stands beside each other in a batch that is a list, a tuple or a mapping."""
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, (list, tuple)) else []


def _items(batch: Any) -> int | None:
    """Length of the lists that a batch consists of, where each has an item a sample."""
    parts = _parts(batch)
    lists = [part for part in parts if type(part) in (list, tuple)]
    lengths = {len(part) for part in lists}
    if len(lists) == len(parts) > 1 and len(lengths) == 1:
        return lengths.pop()
    return None


def _beside_objects(batch: Any) -> int | None:
    """The length that all tensors share which stand beside an object that holds others."""
    parts = _parts(batch)
    lengths = {
        part.size(0) for part in parts if isinstance(part, Tensor) and part.dim()
    }
    if len(lengths) != 1 or not any(map(_holds_tensors, parts)):
        return None
    return lengths.pop()


def _holds_tensors(thing: Any) -> bool:
    """Whether it is an object that keeps tensors in its attributes."""
    plain = (Tensor, Mapping, *_SEQUENCES, *_CLOSED)
    if isinstance(thing, plain) or type(thing) in _PLAIN or thing is None:
        return False
    return any(isinstance(piece, Tensor) for piece in pieces(thing))


def graph_count(batch: Any) -> int | None:
    """How many graphs a batch of graphs declares, itself or as one of its items."""
    things = [batch]
    if isinstance(batch, Mapping):
        things = list(batch.values()) if len(batch) < _LEAVES else []
    elif isinstance(batch, (list, tuple)):
        things = list(batch[:_LEAVES])
    for thing in things:
        if (
            isinstance(thing, Tensor)
            or type(thing) in _PLAIN
            or type(thing) in _SEQUENCES
        ):
            continue
        count = _declared(thing)
        if count is not None:
            return count
    return None


def _declared(thing: Any) -> int | None:
    kind = type(thing)
    if _defines(kind, "num_graphs"):
        declared = next(
            vars(c)["num_graphs"] for c in kind.__mro__ if "num_graphs" in vars(c)
        )
        if isinstance(declared, property) and declared.fget is not None:
            try:
                count = declared.fget(thing)
            except Exception:  # noqa: BLE001 - of a graph that is no batch
                return None
            if type(count) is not int:
                return None
            return count
    held = attributes_of(thing, kind) or {}
    for name in ("num_graphs", "_num_graphs"):
        if type(held.get(name)) is int:
            return int(held[name])
    return None


# --- its samples apart --------------------------------------------------------------------------


def map_samples(
    batch: Any, samples: int, take: Callable[[Any], Any], depth: int = _DEPTH
) -> Any:
    """`batch` with `take` applied to every tensor, and to every list with an item a sample.

    Args:
        batch: One whose `common_length` is `samples`.
        samples: How many samples it holds.
        take: Makes fewer or other samples of a tensor, an array or a list.
        depth: How many containers deep.
    """
    if isinstance(batch, Tensor):
        if batch.dim():
            return take(batch)
        return batch
    if is_array(batch):
        if batch.ndim and len(batch) == samples:
            return take(batch)
        return batch
    closed = type(batch) in _PLAIN or is_image(batch) or isinstance(batch, _CLOSED)
    if closed or not depth:
        return batch

    def inside(part: Any) -> Any:
        return map_samples(part, samples, take, depth - 1)

    if isinstance(batch, dict):
        return _like(batch, {key: inside(value) for key, value in batch.items()})
    if isinstance(batch, (list, tuple)):
        one_each = len(batch) == samples and not tensors(batch)
        items = take(batch) if one_each else [inside(part) for part in batch]
        if type(batch) is list or type(batch) is tuple:
            return type(batch)(items)
        if _defines(type(batch), "_fields"):
            return type(batch)(*items)
        return type(batch)(items)
    return _map_object(batch, samples, take, inside)


def _like(batch: dict[Any, Any], mapped: dict[Any, Any]) -> Any:
    """A dictionary of the class of `batch` with other values."""
    if type(batch) is dict:
        return mapped
    other = copy.copy(batch)
    for key, value in mapped.items():
        other[key] = value
    return other


def _map_object(
    batch: Any, samples: int, take: Callable[[Any], Any], inside: Callable[[Any], Any]
) -> Any:
    held = plain_attributes(batch)
    changed = {}
    for name, value in held.items():
        # what a TensorDict declares
        if type(value) is torch.Size and value[:1] == (samples,):
            changed[name] = torch.Size((_taken(samples, take), *value[1:]))
            continue
        mapped = inside(value)
        if mapped is not value:
            changed[name] = mapped
    if not changed:
        return batch
    other = object.__new__(type(batch))
    for name, value in (held | changed).items():
        object.__setattr__(other, name, value)
    return other


def _taken(samples: int, take: Callable[[Any], Any]) -> int:
    return len(take(torch.empty(samples)))
