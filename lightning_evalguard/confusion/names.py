"""How many classes there are and what they are called, where loader or module say so."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def names_of(
    loader: Any, module: Any, datamodule: Any = None
) -> tuple[str, ...] | None:
    """Class names under ``classes`` or ``class_names`` of the dataset, datamodule or module."""
    dataset = _attribute(loader, "dataset")
    for _ in range(8):  # a Subset of a Subset, a ConcatDataset of them
        if dataset is None:
            break
        if (names := _names(dataset)) is not None:
            return names
        inner = _attribute(dataset, "datasets")
        dataset = (
            inner[0]
            if isinstance(inner, list) and inner
            else _attribute(dataset, "dataset")
        )
    for owner in (datamodule, module):
        if (names := _names(owner)) is not None:
            return names
    return None


def _names(owner: Any) -> tuple[str, ...] | None:
    for attribute in ("classes", "class_names"):
        names = _attribute(owner, attribute)
        if (
            isinstance(names, Sequence)
            and not isinstance(names, str)
            and len(names) > 1
            and all(isinstance(name, str) for name in names)
            and len(set(names)) == len(names)
        ):
            return tuple(names)
    return None


def classes_of(module: nn.Module) -> int | None:
    """``num_classes`` of the module, or of its hyperparameters."""
    hparams = _attribute(module, "hparams")
    inside = None
    if isinstance(hparams, Mapping):
        inside = hparams.get("num_classes")
    for value in (_attribute(module, "num_classes"), inside):
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            return value
    return None


def _attribute(owner: Any, name: str) -> Any:
    """An attribute that the object or its class has; None where only `__getattr__` could say."""
    try:
        inspect.getattr_static(owner, name)
        return getattr(owner, name)
    except Exception:  # noqa: BLE001 - a property of the user's may raise anything
        return None
