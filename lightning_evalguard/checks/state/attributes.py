"""Tensors that modules keep in plain attributes."""

from __future__ import annotations

import weakref

from torch import Tensor

from lightning_evalguard.model.tensors import Kept


def changed_paths(
    before: dict[str, dict[str, Kept]], now: dict[str, dict[str, Kept]]
) -> set[str]:
    """Paths whose tensor was written in place or made way for another; not what only grew."""
    found = set()
    for attribute, paths in before.items():
        for path, k in paths.items():
            after = now.get(attribute, {}).get(path)
            tensor = k.ref()
            same = after is not None and tensor is not None and after.ref() is tensor
            if not same or (after is not None and after.version != k.version):
                found.add(attribute + path)
    return found


def made(
    before: dict[str, dict[str, Kept]], now: dict[str, dict[str, Kept]]
) -> dict[str, weakref.ref[Tensor]]:
    """Attributes that hold a tensor now and held none before."""
    return {
        attribute: paths[""].ref
        for attribute, paths in now.items()
        if "" in paths and attribute not in before
    }
