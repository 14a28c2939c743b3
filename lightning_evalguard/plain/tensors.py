"""Tensors of a plain script: where they lie, how many samples they hold, and their graphs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_MOST = 8  # tensors of what a model returned whose graphs are followed
_NODES = 50_000  # of a graph that are looked at
_KEY = "evalguard"


class GraphMark:
    """Lives as long as an autograd graph does, for it stands in the graph's metadata."""

    __slots__ = ("__weakref__",)


def follow(outputs: Any) -> weakref.ref[GraphMark] | None:
    """A reference that ends with the graph of `outputs`; None where there is none."""
    mark: GraphMark | None = None
    for count, tensor in enumerate(tensors_of_call(outputs)):
        if tensor.grad_fn is not None:
            mark = mark or GraphMark()
            metadata: Any = tensor.grad_fn.metadata
            metadata[_KEY] = mark
        if count + 1 >= _MOST:
            break
    if mark is None:
        return None
    return weakref.ref(mark)


def reached(roots: Iterable[Any], marks: Iterable[GraphMark]) -> set[GraphMark]:
    """Which of `marks` a backward pass from `roots` comes by; all, where the graph is too large."""
    wanted = set(marks)
    waiting = [
        t.grad_fn for t in roots if isinstance(t, Tensor) and t.grad_fn is not None
    ]
    known = set(waiting)
    met: set[GraphMark] = set()
    while waiting and met != wanted:
        node = waiting.pop()
        metadata: Any = node.metadata
        mark = metadata.get(_KEY)
        if mark in wanted:
            met.add(mark)
        for following, _ in node.next_functions:
            if following is not None and following not in known:
                known.add(following)
                waiting.append(following)
        if len(known) > _NODES:
            return wanted
    return met


def tensors_of_call(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors of a batch, a tuple of arguments, or what a model returned."""
    if isinstance(value, Tensor):
        yield value
        return
    inner: Sequence[Any] = ()
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, (list, tuple)):
        inner = value
    for item in inner if depth else ():
        yield from tensors_of_call(item, depth - 1)


def memory_of(batch: Any) -> set[int]:
    """Where the tensors of a batch lie."""
    return {
        t.untyped_storage().data_ptr()
        for t in tensors_of_call(batch)
        if t.layout == torch.strided
    }


def size_of(batch: Any) -> int | None:
    """How many samples a batch holds, by its first tensor."""
    first = next(tensors_of_call(batch), None)
    if first is not None and first.ndim:
        return len(first)
    return None
