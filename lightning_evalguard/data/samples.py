"""What samples contain: compared, hashed and re-read without side effects."""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_evalguard.data.batches import NUMBER_TYPES, is_array, is_image, leaves
from lightning_evalguard.instruments.generators import is_generator
from lightning_evalguard.instruments.rollback import Snapshot, attributes_of, held_parts
from lightning_evalguard.instruments.settings import unchanged_world

_OBJECTS = 1000  # looked into around a dataset
_SMALL = 64  # items of a container that is looked into
_VALUES = 8  # distinct ones, of a sample that is not equal to another by chance
_SKETCHED = 256  # elements of one tensor


def _size(leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        return leaf.numel()
    if is_array(leaf):
        return int(leaf.size)
    if isinstance(leaf, (str, bytes)):
        return len(leaf)
    if is_image(leaf) or isinstance(leaf, PurePath):
        return 2
    return 1


def _bytes(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        if leaf.layout != torch.strided:
            return repr(leaf).encode()
        # a copy: ``.numpy()`` of a live tensor makes its storage non-resizable for good
        copy = leaf.detach().cpu().clone(memory_format=torch.contiguous_format)
        if not copy.numel():
            return b""
        return copy.flatten().view(torch.uint8).numpy()
    if is_image(leaf) or (is_array(leaf) and leaf.dtype != object):
        return leaf.tobytes()
    if isinstance(leaf, bytes):
        return leaf
    return repr(leaf).encode()


def digest(sample: Any) -> bytes:
    """A hash of all that a sample contains."""
    hashed = hashlib.blake2b(digest_size=8)
    for leaf in leaves(sample):
        hashed.update(f"{type(leaf).__name__}{getattr(leaf, 'shape', '')}".encode())
        hashed.update(_bytes(leaf))
    return hashed.digest()


def content_hash(sample: Any) -> tuple[bytes, bool] | None:
    """A hash of what makes a sample this sample: not its label or number, if it has more.

    With it goes whether the sample is `rich`. None for one that says nothing: blank, or empty.
    """
    held = list(leaves(sample))
    large = [leaf for leaf in held if _size(leaf) > 1] or held
    raw = [bytes(_bytes(leaf)) for leaf in large]
    if all(len(set(b)) < 2 for b in raw) or all(map(_is_blank, large)):
        return None
    hashed = hashlib.blake2b(b"\0".join(raw), digest_size=8).digest()
    return hashed, any(map(rich, large))


def largest_tensor(sample: Any) -> Tensor:
    """The tensor or array of a sample that has most numbers; raises where it has none."""
    held = [leaf for leaf in leaves(sample) if isinstance(leaf, Tensor)]
    arrays = [leaf for leaf in leaves(sample) if is_array(leaf)]
    held += [torch.tensor(a) for a in arrays if a.dtype.name in NUMBER_TYPES]
    return max((t.detach() for t in held), key=Tensor.numel)


def spread(k: int, n: int) -> int:
    """The k-th of `n` places, each once, consecutive ones far apart."""
    step = max(1, int(n * 0.6180339887498949))
    while math.gcd(step, n) > 1:
        step += 1
    return k * step % n


def rich(leaf: Any) -> bool:
    """Whether a tensor, array or text is so particular that two are not equal by chance."""
    if isinstance(leaf, str):
        return len(leaf) > 40 or len(set(leaf.split())) >= _VALUES
    if is_array(leaf) and leaf.dtype.name in NUMBER_TYPES:
        return len(set(_spread(leaf.ravel()).tolist())) >= _VALUES
    if isinstance(leaf, Tensor):
        return len(set(_spread(leaf.flatten()).tolist())) >= _VALUES
    return is_image(leaf) or isinstance(leaf, PurePath)


def _spread(flat: Any) -> Any:
    return flat[:: max(1, len(flat) // _SKETCHED)]


def _is_blank(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.numel() < 2 or (
            leaf.ndim > 0 and bool((leaf == leaf.flatten()[0]).all())
        )
    if is_array(leaf):
        return bool(leaf.size < 2 or (leaf == leaf.flat[0]).all())
    return _size(leaf) < 2


# --- rows of a dataset that lies in memory -------------------------------------------------------


class SampleRows(NamedTuple):
    """What samples are made from, before any transform: rows in memory, or names of files.

    Attributes:
        values: A tensor whose row ``i`` is sample ``i``'s, or the names.
        chosen: Which of them, ``(N,)`` int64.
    """

    values: Tensor | list[str]
    chosen: Tensor

    def rich(self, place: int) -> bool:
        """Whether one of them is `rich`."""
        return isinstance(self.values, list) or rich(self.values[place])

    def some(self, most: int) -> SampleRows:
        """At most so many of them, evenly spaced."""
        step = max(1, -(-len(self.chosen) // most))
        return SampleRows(self.values, self.chosen[::step])


def rows(dataset: Any, chosen: Tensor) -> SampleRows | None:
    """The rows or files that a dataset holds one of a sample; no sample is read."""
    n = _length(dataset)
    held = list(getattr(dataset, "__dict__", {}).values())
    for value in list(held):
        if isinstance(value, (tuple, list)) and len(value) < 16:
            held += value
    for value in held:
        if (
            isinstance(value, (list, tuple))
            and n
            and len(value) == n
            and _file(value[0])
        ):
            return SampleRows([str(_file(one)) for one in value], chosen)
    tables = []
    for value in held:
        if is_array(value) and value.ndim > 1 and value.dtype.kind in "fiub":
            if not value.flags.writeable or value.dtype.byteorder == ">":
                continue  # torch takes neither without a word
            value = (
                torch.from_numpy(value) if value.dtype.name in NUMBER_TYPES else None
            )
        if isinstance(value, Tensor) and _is_table(value) and len(value) == n:
            tables.append(value.detach())
    if not tables:
        return None
    return SampleRows(max(tables, key=Tensor.numel), chosen)


def _is_table(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and not tensor.is_complex()
    return plain and tensor.ndim > 1 and tensor.device.type == "cpu"


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return -1


def _file(thing: Any) -> str | None:
    """The path that an entry of a list of files names; None for any other text."""
    first = thing
    if isinstance(thing, (tuple, list)) and thing:
        first = thing[0]
    if isinstance(first, PurePath):
        return str(first)
    if (
        isinstance(first, str)
        and PurePath(first).suffix
        and len(PurePath(first).parts) > 1
    ):
        return first
    return None


_PLACES = 64  # columns by which rows are told apart before they are compared in full
_CHUNK = 1 << 12  # rows
_TRIES = 4  # rows of a chunk compared in full with one query
_BLOCK = 1 << 22  # values compared at once
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def twins(
    queries: SampleRows, table: SampleRows, wanted: int, budget: Budget
) -> Tensor:
    """Which of `queries` stand in `table`, as a mask ``(N,)``.

    Args:
        queries: Rows to look for.
        table: Rows to look in.
        wanted: How often a row must stand there: 2 for one that came from there.
        budget: How many rows may be looked at.
    """
    found = torch.zeros(len(queries.chosen), dtype=torch.int64)
    a = queries.values
    b = table.values
    if isinstance(a, list) and isinstance(b, list):
        names = Counter(b[i] for i in table.chosen.tolist())
        counts = [names[a[i]] for i in queries.chosen.tolist()]
        return torch.tensor(counts, dtype=torch.int64) >= wanted
    if isinstance(a, list) or isinstance(b, list):
        return found >= wanted
    if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype or not (len(a) and len(b)):
        return found >= wanted
    wanted_keys, query_of = keys(a, queries.chosen).sort()
    for chosen in table.chosen.split(_CHUNK):  # type: ignore[no-untyped-call]
        if not budget.look(len(chosen)):
            break
        there, row_of = keys(b, chosen).sort()
        first = torch.searchsorted(there, wanted_keys)
        last = torch.searchsorted(there, wanted_keys, right=True)
        for k in range(_TRIES):
            at = (first + k < last).nonzero().flatten()
            if not len(at):
                break
            mine = queries.chosen[query_of[at]]
            theirs = chosen[row_of[first[at] + k]]
            found[query_of[at]] += _equal(a, mine, b, theirs)
    return found >= wanted


def _equal(a: Tensor, mine: Tensor, b: Tensor, theirs: Tensor) -> Tensor:
    """(N,) int64: 1 where a row of `a` is bit for bit one of `b`, and not blank."""
    width = max(1, a[0].numel())
    same = []
    step = max(1, _BLOCK // width)
    for start in range(0, len(mine), step):
        x = bits(a[mine[start : start + step]])
        y = bits(b[theirs[start : start + step]])
        blank = (x == x[:, :1]).all(1)
        same.append((x == y).all(1) & ~blank)
    return torch.cat(same).to(torch.int64)


def rows_at(rows: Tensor, chosen: Tensor) -> Tensor:
    """The rows at some places, ``(N, F)``; those that stand evenly apart are not gathered first."""
    if len(chosen) > 1:
        start, step = int(chosen[0]), int(chosen[1] - chosen[0])
        if step > 0 and torch.equal(
            chosen, torch.arange(len(chosen), device=chosen.device) * step + start
        ):
            rows = rows[start::step][: len(chosen)]
            return rows.contiguous()
    return rows[chosen].contiguous()


def bits(rows: Tensor) -> Tensor:
    """``(N, F)``: the values of each row as integers of their size."""
    flat = rows.reshape(len(rows), -1)
    if flat.dtype == torch.bool:
        flat = flat.to(torch.uint8)
    return flat.view(_INTEGERS[flat.element_size()])


def keys(values: Tensor, chosen: Tensor) -> Tensor:
    """``(N,)`` int64: equal for equal rows, and for few others."""
    flat = values.reshape(len(values), -1)
    step = max(1, -(-flat.shape[1] // _PLACES))
    words = bits(rows_at(flat[:, step // 2 :: step], chosen)).to(torch.int64)
    weights = (
        torch.arange(1, words.shape[1] + 1) * 0x1E3779B97F4A7C15 + 0x3F58476D1CE4E5B9
    )
    return (words * weights).sum(1)


# --- batches, as a step gets them ---------------------------------------------------------------


class Sketch(NamedTuple):
    """A few elements of each tensor of a batch, left on its device, and a hash of the rest."""

    shapes: tuple[tuple[int, ...], ...]
    tensors: tuple[Tensor, ...]
    rest: bytes

    def same(self, other: Sketch) -> bool:
        """Whether both are of one batch, up to what a device rounds."""
        if self.shapes != other.shapes or self.rest != other.rest:
            return False
        return all(map(_close, self.tensors, other.tensors))


def sketch(batch: Any) -> Sketch:
    """What tells one batch from another, without waiting for the device."""
    held = list(leaves(batch))
    tensors = [
        t.detach() for t in held if isinstance(t, Tensor) and t.layout == torch.strided
    ]
    with torch.no_grad():
        some = [_some(t) for t in tensors[:16]]
    shapes = tuple(tuple(t.shape) for t in tensors)
    return Sketch(
        shapes, tuple(some), digest([v for v in held if not isinstance(v, Tensor)])
    )


def _some(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // _SKETCHED)].clone()


def _close(a: Tensor, b: Tensor) -> bool:
    a, b = a.cpu(), b.cpu()
    if a.dtype != b.dtype:
        return False
    equal = torch.equal(a, b)
    if equal or not a.is_floating_point() or not a.numel():
        return equal
    scale = 1.0
    if bool(a.isfinite().any()):
        scale = float(a[a.isfinite()].abs().max())
    return torch.allclose(
        a.double(), b.double(), rtol=1e-3, atol=1e-3 * scale, equal_nan=True
    )


# --- reading without a trace, and not for long --------------------------------------------------


class Budget:
    """What may be looked at, in counts: the verdict is the same on a busy machine.

    Args:
        reads: Samples that may be read.
        rows: Rows in memory that may be compared.

    Attributes:
        cut: Whether something was left out.
    """

    def __init__(self, reads: int = 0, rows: int = 1 << 18) -> None:
        self._reads, self._rows = reads, rows
        self.cut = False

    def read(self, samples: int = 1) -> bool:
        """Take so many samples of it; False where it does not hold as many."""
        if samples > self._reads:
            self.cut = True
            return False
        self._reads -= samples
        return True

    def look(self, rows: int) -> bool:
        """Take so many rows of it; False where it does not hold as many."""
        if rows > self._rows:
            self.cut = True
            return False
        self._rows -= rows
        return True


_CALLS = 400  # functions called by one read that is cheap
_SLOW = frozenset(
    {"sleep", "open", "read", "readinto", "recv", "stat", "scandir", "load", "decode"}
)
_CHEAP_BYTES = 1 << 16


def is_cheap(dataset: Any, place: int) -> bool:
    """Whether reading a sample costs microseconds: by what it calls, not by the clock.

    To be called where the dataset is `undisturbed`.
    """
    if sys.getprofile() is not None:
        return False
    calls, slow = 0, False

    def count(frame: Any, event: str, called: Any) -> None:
        nonlocal calls, slow
        if event == "call":
            calls += 1
            slow |= calls > _CALLS
        elif event == "c_call":
            calls += 1
            slow |= getattr(called, "__name__", "") in _SLOW

    sys.setprofile(count)
    try:
        sample = dataset[place]
    finally:
        sys.setprofile(None)
    size = 0
    for leaf in leaves(sample):
        if isinstance(leaf, Tensor):
            size += leaf.nbytes
        else:
            size += _size(leaf)
    return not slow and calls <= _CALLS and size <= _CHEAP_BYTES


@contextmanager
def undisturbed(*datasets: Any) -> Iterator[None]:
    """Whatever reading samples moves or sets is put back: generators, attributes, open files.

    A file that a dataset opens at its first sample would else be inherited by the workers that
    are forked later, which some libraries do not survive.
    """
    held = Snapshot([])
    attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for thing in _around(datasets):
        kind = type(thing)
        if is_generator(kind):
            held.hold_generator(thing)
        elif kind is dict:
            if len(thing) <= _SMALL:
                attributes.append((thing, dict(thing)))
        else:
            own = (
                vars(thing)
                if isinstance(thing, Dataset)
                else attributes_of(thing, kind)
            )
            if own:
                attributes.append((own, dict(own)))
    with unchanged_world():
        try:
            yield
        finally:
            held.restore_generators()
            for now, before in attributes:
                if now.keys() != before.keys() or any(
                    now[k] is not v for k, v in before.items()
                ):
                    now.clear()
                    now.update(before)


def _around(datasets: Iterable[Any]) -> Iterator[Any]:
    """The datasets and the objects they hold, nearest first; large containers stay closed."""
    queue = deque(datasets)
    seen = set[int]()
    while queue and len(seen) < _OBJECTS:
        thing = queue.popleft()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, Dataset):
            queue.extend(vars(thing).values())
        elif not (isinstance(thing, (list, tuple, dict, set)) and len(thing) > _SMALL):
            queue.extend(part for _, part in held_parts(thing))


__all__ = [
    "Budget",
    "SampleRows",
    "Sketch",
    "bits",
    "content_hash",
    "digest",
    "is_cheap",
    "keys",
    "largest_tensor",
    "rows",
    "rows_at",
    "sketch",
    "spread",
    "twins",
    "undisturbed",
]  # fmt: skip
