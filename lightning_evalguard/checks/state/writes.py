"""What the operators of a step show of a model's state: who writes it, reads it on, or makes it."""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from lightning_evalguard.allow import allowed
from lightning_evalguard.instruments.dispatch import (
    Op,
    Subscriber,
    storage_key,
    tensors_in,
)
from lightning_evalguard.instruments.source import Site, owner_of, site_of
from lightning_evalguard.model.tensors import Inventory, Kept

# These join or move values; what they give is still the attribute's own.
_GATHERING = frozenset(
    {
        "cat",
        "stack",
        "copy_",
        "index_put_",
        "_index_put_impl_",
        "index_copy_",
        "scatter_",
        "where",
    }
)
# What these give is never one of their factors, whatever its shape.
_CONTRACTING = frozenset(
    {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "matmul", "linear", "convolution"}
)
# Of its own value and of constants, each of these may make the one that it leaves as it is.
_PROJECTIONS = frozenset(
    {"mul_", "clamp_", "clamp_min_", "clamp_max_", "relu_", "abs_", "masked_fill_"}
    | {"hardtanh_", "triu_", "tril_", "index_fill_", "nan_to_num_"}
)
_FROM_PARAMETER, _FROM_ELSEWHERE = 1, 2
# of the user's, from the operator that makes a tensor to the line that assigns it
_FRAMES = 8


@dataclass(frozen=True)
class StoragePlaces:
    """Where what a model holds lives in memory, by storage.

    Attributes:
        held: Names of parameters and buffers.
        attributes: Paths of tensors in plain attributes. An attribute's tensor may go during the
            step and its place be another's: hence the tensor with it.
        batch: The batch, whose tensors may go during the step too.
        parameters: Those of `held` that are parameters.
    """

    held: Mapping[int, list[str]]
    attributes: Mapping[int, list[tuple[str, weakref.ref[Tensor]]]]
    batch: Mapping[int, weakref.ref[Tensor]]
    parameters: frozenset[int]

    @classmethod
    def of(
        cls,
        inventory: Inventory,
        attributes: Mapping[str, Mapping[str, Kept]],
        batch: Iterable[Tensor],
    ) -> StoragePlaces:
        """The places of this moment."""
        held: dict[int, list[str]] = {}
        parameters: set[int] = set()
        for name, h in inventory.held.items():
            key = None
            if not h.lazy:
                key = storage_key(h.tensor)
            if key is not None:
                held.setdefault(key, []).append(name)
                if h.kind == "parameter":
                    parameters.add(key)
        plain: dict[int, list[tuple[str, weakref.ref[Tensor]]]] = {}
        for attribute, paths in attributes.items():
            for path, k in paths.items():
                tensor = k.ref()
                key = None
                if tensor is not None:
                    key = storage_key(tensor)
                if key is not None and key not in held:
                    plain.setdefault(key, []).append((attribute + path, k.ref))
        given = {
            key: weakref.ref(t) for t in batch if (key := storage_key(t)) is not None
        }
        return cls(held, plain, given, frozenset(parameters))

    def is_batch(self, key: int) -> bool:
        """Whether a tensor of the batch lives in a storage and has not gone."""
        ref = self.batch.get(key)
        return ref is not None and ref() is not None

    def paths(self, key: int | None) -> list[str]:
        """Plain attributes whose tensor lives in a storage and has not gone."""
        here = self.attributes.get(key, ()) if key is not None else ()
        return [path for path, ref in here if ref() is not None]


class FirstWrites(Subscriber):
    """Sees where a step first writes to what the model holds, and what it makes of attributes.

    Args:
        places: Where things live.
        attribute: Gives the tensor in a plain attribute by its path, for `watched`.
        watched: Paths of attributes that the step is about to make anew.

    Attributes:
        sites: By name or path, where it is first written.
        combined: Plain attributes that enter the computation, and where.
        projected: Parameters that are only put where training puts them too: a mask, a bound.
        allowed: Names that are written inside ``allow("state")`` and nowhere else.
        batch: Where the batch is first written.
        backward: Where the step runs backward.
        products: Of `watched`, those made of parameters and nothing else, and where.
    """

    def __init__(
        self,
        places: StoragePlaces,
        attribute: Callable[[str], Tensor | None] = lambda _: None,
        watched: Iterable[str] = (),
    ) -> None:
        self.sites: dict[str, Site | None] = {}
        self.combined: dict[str, Site | None] = {}
        self.projected: set[str] = set()
        self.allowed: set[str] = set()
        self.batch: Site | None = None
        self.backward: Site | None = None
        self.products: dict[str, Site | None] = {}
        self._places = places
        self._attribute = attribute
        self._watched = set(watched)
        self._origin = {
            **dict.fromkeys(places.batch, _FROM_ELSEWHERE),
            **dict.fromkeys(places.parameters, _FROM_PARAMETER),
        }
        self._made: dict[int, tuple[weakref.ref[Tensor], list[Site]]] = {}
        self._otherwise: set[str] = set()  # parameters that are written in another way

    def before(self, op: Op) -> None:
        if self.backward is None and torch._C._current_graph_task_id() != -1:
            self.backward = op.site
        meant = allowed("state")
        for tensor in op.written:
            key = storage_key(tensor)
            if key is None:
                continue
            for name in (*self._places.held.get(key, ()), *self._places.paths(key)):
                if meant:
                    if name not in self.sites:
                        self.allowed.add(name)
                elif name not in self.sites:
                    self.allowed.discard(name)
                    self.sites[name] = op.site
            if self.batch is None and not meant and self._places.is_batch(key):
                self.batch = op.site

    def after(self, op: Op) -> None:
        inputs = list(tensors_in([*op.args, *op.kwargs.values()]))
        keys = [storage_key(t) for t in inputs]
        self._note_projections(op, keys)
        self._follow(op, keys)
        if self._places.attributes and op.name not in _GATHERING:
            for tensor, key in zip(inputs, keys, strict=True):
                paths = self._places.paths(key)
                if paths and self._enters(tensor, key, inputs, keys, op):
                    for path in paths:
                        self.combined.setdefault(path, op.site)

    def _enters(
        self,
        tensor: Tensor,
        key: int | None,
        inputs: Iterable[Tensor],
        keys: list[int | None],
        op: Op,
    ) -> bool:
        """Whether an attribute's tensor makes a result, rather than a new value of itself.

        A running sum, a histogram or a list of predictions is read to be written, and its shape
        stays; a queue, a centre or a hidden state meets the batch, or the weights it follows.
        """
        others = [
            k
            for t, k in zip(inputs, keys, strict=True)
            if k != key and k is not None and t.is_floating_point()
        ]
        if not others or not tensor.dim() or not tensor.is_floating_point():
            return False
        if op.name in _CONTRACTING or any(k in self._places.parameters for k in others):
            return True
        return tensor.shape not in {t.shape for t in tensors_in(op.out)}

    def _note_projections(self, op: Op, keys: list[int | None]) -> None:
        for tensor in op.written:
            key = storage_key(tensor)
            if key is None or key not in self._places.parameters:
                continue
            names = self._places.held[key]
            if self._projects(op, tensor, keys):
                self.projected.update(n for n in names if n not in self._otherwise)
            else:
                self._otherwise.update(names)
                self.projected.difference_update(names)

    def _projects(self, op: Op, tensor: Tensor, keys: list[int | None]) -> bool:
        """Whether the operator would leave what it wrote as it is, whatever the batch is.

        Only what a module's forward does is done in training too.
        """
        if op.name not in _PROJECTIONS or op.args[0] is not tensor or op.module is None:
            return False
        if any(self._origin_of(key) & _FROM_ELSEWHERE for key in keys):
            return False
        with torch.no_grad():
            again = tensor.detach().clone()
            op.func(again, *op.args[1:], **op.kwargs)
            return torch.equal(again, tensor)

    # what is made of parameters alone

    def _follow(self, op: Op, keys: list[int | None]) -> None:
        origin = 0
        for key in keys:
            origin |= self._origin_of(key)
        for tensor in tensors_in(op.out):
            key = storage_key(tensor)
            if key is None:
                continue
            if key in keys:  # written in place, or a view
                self._origin[key] = origin
                continue
            self._origin[key] = origin
            self._made.pop(key, None)
            if origin == _FROM_PARAMETER and tensor.is_floating_point():
                frames = (
                    f for f in op.stack() if owner_of(f.f_code.co_filename) == "user"
                )
                sites = [site_of(f) for f in islice(frames, _FRAMES)]
                self._made[key] = weakref.ref(tensor), sites
        for path in tuple(self._watched):
            made = self._attribute(path)
            if made is not None:
                self._watched.discard(path)
                self.judge(path, made)

    def _origin_of(self, key: int | None) -> int:
        if key is None:
            return 0
        made = self._made.get(key)
        if made is not None and made[0]() is None:
            # what was made here has gone, and its place may be another's
            return _FROM_ELSEWHERE
        return self._origin.get(key, 0)

    def judge(self, path: str, tensor: Tensor) -> None:
        """Note in `products` whether the tensor of an attribute is one."""
        key = storage_key(tensor)
        ref, sites = self._made.get(key, (None, [])) if key is not None else (None, [])
        if (
            ref is not None
            and ref() is tensor
            and self._origin_of(key) == _FROM_PARAMETER
        ):
            assigns = [
                s for s in sites if f".{path.rpartition('.')[2]} =" in line_of(s)
            ]
            self.products[path] = next(iter(assigns or sites), None)


def line_of(site: Site) -> str:
    """The source line of a place."""
    path, _, line = site.location.rpartition(":")
    return linecache.getline(path, int(line))


def attribute_of(inventory: Inventory, path: str) -> tuple[nn.Module, str]:
    """The module and the key of a plain attribute by its qualified name."""
    owner, _, key = path.rpartition(".")
    return inventory.modules[owner], key


__all__ = ["FirstWrites", "StoragePlaces", "attribute_of"]
