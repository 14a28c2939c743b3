"""Which layers got gradients of exactly 0 alone, although a loss reaches them?

A factor of 0, a ``.detach()`` that an added ``0 * x`` hides, an activation that is never active:
autograd reaches the weights and brings nothing. It is told by the gradients that stand whenever a
fit is looked at, and by what the optimizer made of all of them: averages and momenta that are 0.

Only a layer all of whose weights are so is one. Meant are the queries and keys of attention over
one token, members of a list or table of modules that another one is used in place of (experts that
nothing is routed to, heads of tasks without labels), weights whose gradients a hook steers, rows of
padding, and an optimizer that waits for its turn beside others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_evalguard.checks.weights import loads
from lightning_evalguard.model.tensors import Held, Inventory

_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
    _ConvNd,
)
_MEMBERS = (nn.ModuleList, nn.ModuleDict)
_ROOM = 2.0  # for weights that shrank meanwhile
_MOMENTA = 10  # 1 / (1 - 0.9)
# of attention: a softmax over one token has no gradient
_SCORES = frozenset({"q", "k", "qk", "query", "key", "queries", "keys", "wq", "wk"})


def are_zero(tensors: Sequence[Tensor]) -> list[bool]:
    """Which of the tensors hold nothing but 0; those that cannot be read so do not."""
    plain = [i for i, one in enumerate(tensors) if _is_plain(one)]
    zero = [False] * len(tensors)
    with torch.no_grad():
        # most end at a few values; one copy from each device
        for part in (_first, _whole):
            flags = _on_host([part(tensors[i]).any() for i in plain])
            plain = [i for i, holds in zip(plain, flags, strict=True) if not holds]
    for i in plain:
        zero[i] = True
    return zero


def _is_plain(tensor: Tensor) -> bool:
    kind = type(tensor) in (Tensor, nn.Parameter)
    return kind and tensor.layout == torch.strided and tensor.device.type != "meta"


def _first(tensor: Tensor) -> Tensor:
    if not tensor.ndim:
        return tensor
    return tensor[:1]


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _on_host(flags: Sequence[Tensor]) -> list[bool]:
    devices: dict[torch.device, list[int]] = {}
    for i, flag in enumerate(flags):
        devices.setdefault(flag.device, []).append(i)
    values = [False] * len(flags)
    for places in devices.values():
        copied = torch.stack([flags[i] for i in places]).tolist()
        for i, value in zip(places, copied, strict=True):
            values[i] = value
    return values


def without_effect(
    silent: Iterable[Held], optimizers: Iterable[Any], inventory: Inventory
) -> list[Held]:
    """The weights of layers that no gradient other than 0 reached.

    Args:
        silent: Trainable parameters of which no other gradient was seen, that an optimizer steps.
        optimizers: Those of the fit.
        inventory: The model's tensors.
    """
    everything = list(optimizers)
    dead = [held for held in silent if _got_nothing(held.tensor, everything)]
    waiting = _that_wait(dead, everything)
    ids = {id(held.tensor) for held in dead}
    trainable = _trainable(inventory)
    layers: dict[str, list[Held]] = {}
    for held in dead:
        own = [other for other in trainable if other.owner == held.owner]
        whole = all(id(other.tensor) in ids for other in own)
        if whole and _is_meant_to_learn(held) and id(held.tensor) not in waiting:
            layers.setdefault(held.owner, []).append(held)
    alive = [held for held in trainable if id(held.tensor) not in ids]
    if all(_is_alternative(owner, alive, inventory) for owner in layers):
        return []
    return [held for own in layers.values() for held in own]


def _trainable(inventory: Inventory) -> list[Held]:
    held = inventory.held.values()
    return [h for h in held if h.kind == "parameter" and h.tensor.requires_grad]


def _got_nothing(tensor: Tensor, optimizers: Iterable[Any]) -> bool:
    """Whether what an optimizer made of all gradients is 0; of one that keeps nothing True."""
    for optimizer in optimizers:
        state = optimizer.state.get(tensor, {})
        for group in optimizer.param_groups:
            if not any(tensor is one for one in group["params"]):
                continue
            kept = averages_of(state, tensor)
            decay = group.get("weight_decay", 0)
            if not all(are_zero(kept)) and not _is_of_decay(state, tensor, decay):
                return False
    return True


def _is_of_decay(state: Mapping[str, Any], tensor: Tensor, decay: Any) -> bool:
    """Whether what is kept may come of the weight decay alone, which some add to gradients."""
    if not isinstance(decay, (int, float)) or not decay:
        return False
    with torch.no_grad():
        highest = _ROOM * decay * float(tensor.abs().max())
        squares = state.get("exp_avg_sq")
        momentum = state.get("momentum_buffer")
        if isinstance(squares, Tensor):
            return float(squares.max()) <= highest**2
        # of a momentum of 0.9 or less
        return isinstance(momentum, Tensor) and float(momentum.abs().max()) <= (
            _MOMENTA * highest
        )


def averages_of(state: Mapping[str, Any], tensor: Tensor) -> list[Tensor]:
    """What an optimizer keeps of all gradients of a parameter, as large as it is."""
    kept = [value for value in state.values() if isinstance(value, Tensor)]
    return [value for value in kept if value.ndim and value.shape == tensor.shape]


def _is_meant_to_learn(held: Held) -> bool:
    module = held.module
    own = held.owner.rpartition(".")[2]
    if not isinstance(module, _LAYERS):
        return False
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        return False
    if held.tensor._backward_hooks or loads.touched(held.tensor):
        return False
    return _SCORES.isdisjoint(own.lower().split("_"))


def _that_wait(dead: Iterable[Held], optimizers: Sequence[Any]) -> set[int]:
    """What one of several optimizers holds, where nothing of it ever got a gradient."""
    silent = {id(held.tensor) for held in dead}
    waiting: set[int] = set()
    for optimizer in optimizers:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if len(optimizers) > 1 and own <= silent:
            waiting |= own
    return waiting


def _is_alternative(owner: str, alive: Iterable[Held], inventory: Inventory) -> bool:
    """Whether a layer is, or is inside, one of several members of which another one learns."""
    parts = owner.split(".")
    learning = {name for held in alive for name in _upwards(held.owner)}
    for n in range(1, len(parts)):
        parent = ".".join(parts[:n])
        member = ".".join(parts[: n + 1])
        if not isinstance(inventory.modules.get(parent), _MEMBERS):
            continue
        kind = type(inventory.modules.get(member))
        for name, other in inventory.modules.items():
            beside = name.rpartition(".")[0] == parent and name != member
            if beside and type(other) is kind and name in learning:
                return True
    return False


def _upwards(owner: str) -> Iterable[str]:
    parts = owner.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts) + 1))
