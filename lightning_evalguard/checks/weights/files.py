"""Which hyper-parameters stood beside a tensor in the checkpoint that it was read from?

Seen where torch checks what it read, the last thing that ``torch.load`` does: no public function
is replaced, and no traceback gets a frame of ours.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.instruments.rollback import attributes_of
from lightning_evalguard.instruments.variables import variable

_LAST = "_validate_loaded_sparse_tensors"
# the second one as Lightning 1.0 and many scripts have it
_KEYS = ("hyper_parameters", "hparams")
_WEIGHTS = ("state_dict", "model_state_dict", "model")
_DEEP = 4  # dictionaries in dictionaries
_PLAIN = (bool, int, float, str, type(None))

Plain = Mapping[str, Any]
problems: list[str] = []  # what could not be understood of a load, in one sentence each
_beside: dict[int, tuple[weakref.ref[Tensor], Plain]] = {}


def watch_files() -> None:
    """Watch what this process reads with ``torch.load``; calling it again does nothing."""
    check: Any = getattr(torch._utils, _LAST, None)
    if check is None or hasattr(check, "__evalguard__"):
        return

    # Whatever torch passes to its own function: 2.14 says `weights_only=`, those before it nothing.
    def watched(*args: Any, **kwargs: Any) -> Any:
        answer = check(*args, **kwargs)
        result = variable(sys._getframe(1), "result")
        try:
            if type(result) is dict:
                _read(result)
        except Exception as error:  # noqa: BLE001 - a load of the user's must not fail by ours
            said = f"a checkpoint was not understood: {type(error).__name__}: {error}"
            problems.append(said)
        return answer

    watched.__name__ = _LAST
    watched.__doc__ = check.__doc__
    watched.__evalguard__ = True  # type: ignore[attr-defined]
    setattr(torch._utils, _LAST, watched)


def _read(checkpoint: dict[str, Any]) -> None:
    """Remember the hyper-parameters of a checkpoint by each of its tensors."""
    said = next((checkpoint[key] for key in _KEYS if key in checkpoint), None)
    weights = next((checkpoint[key] for key in _WEIGHTS if key in checkpoint), None)
    if said is None or not isinstance(weights, Mapping):
        return
    found = flat_values(said)
    if not found:
        return
    for tensor in weights.values():
        if isinstance(tensor, Tensor):
            key = id(tensor)
            gone = weakref.ref(tensor, lambda _, key=key: _beside.pop(key, None))  # type: ignore[misc]
            _beside[key] = gone, found


def stored_hyper_parameters(tensors: Iterable[Any]) -> Plain | None:
    """What stood in the checkpoint beside some of the tensors; None where nothing is known."""
    for tensor in tensors:
        held, said = _beside.get(id(tensor), (None, None))
        if held is not None and held() is tensor:
            return said
    return None


def flat_values(said: Any) -> dict[str, Any]:
    """Plain values by name, ``encoder.heads`` for those of a dictionary in it."""
    found: dict[str, Any] = {}
    _flatten(said, "", found, 0)
    return found


def _flatten(value: Any, name: str, found: dict[str, Any], depth: int) -> None:
    if isinstance(value, Mapping):
        items = list(value.items())
    elif type(value).__name__ == "Namespace":
        items = list((attributes_of(value, type(value)) or {}).items())
    elif type(value) in _PLAIN:
        found[name] = value
        return
    elif type(value) in (list, tuple) and all(type(one) in _PLAIN for one in value):
        found[name] = tuple(value)
        return
    else:
        return
    for key, one in items if depth < _DEEP else ():
        _flatten(one, f"{name}.{key}" if name else str(key), found, depth + 1)
