"""Are these weights as their layer's constructor drew them?

Said only where two things agree: nothing but a constructor wrote the tensor, by torch's count of
writes, and its values are those that the constructor of this very layer gives: all within the
bounds of its uniform draw, ones and zeros of a normalisation, a constant bias.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_evalguard.checks.weights.loads import version_of

# writes by a constructor: an embedding's padding is one after the draw
_CONSTRUCTED = 2
_TRAINED = 16  # writes from which on it is no initialisation
_OWN_INIT = 4  # writes where an initialisation of the user's follows
_ENOUGH = 64  # values from which on a uniform draw comes near its bounds
_GAINS = (1.0, math.sqrt(2), 5 / 3, math.sqrt(1 / 3))  # of `nn.init.calculate_gain`
_READ = 1 << 16  # values of a tensor that are looked at
_NORMS = (
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),
)


def is_drawn(
    module: nn.Module, key: str, tensor: Tensor, writes: int | None = None
) -> bool:
    """Whether the parameter `key` of `module` is as torch's own constructor drew it at random.

    Args:
        module: The layer.
        key: The parameter's own name.
        tensor: The parameter.
        writes: How often it was written, where not all writes count.
    """
    written = version_of(tensor) if writes is None else writes
    if (
        not 1 <= written <= _CONSTRUCTED
        or isinstance(module, _NORMS)
        or _unpickled(tensor)
    ):
        return False
    bound = _bound(module, key)
    values = _values(tensor)
    if values is None or not len(values):
        return False
    if bound is not None:
        return _uniform(values, bound, tensor.dtype)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        near = 5 / math.sqrt(2 * len(values))
        spread = float((values * values).mean().sqrt())
        return len(values) >= _ENOUGH and abs(spread - 1) < near + 0.05
    return False


def is_constant(module: nn.Module, key: str, tensor: Tensor) -> bool:
    """Whether the parameter is what constructors fill in: a bias of zeros, a scale of ones."""
    few = 1 <= version_of(tensor) <= _OWN_INIT
    return few and holds_constant(module, key, tensor)


def holds_constant(module: nn.Module, key: str, tensor: Tensor) -> bool:
    """Whether the values are those that constructors fill in, however often it was written."""
    values = _values(tensor)
    if values is None or not len(values):
        return False
    first = float(values[0])
    wanted = (0.0, 1.0) if isinstance(module, _NORMS) or "bias" in key else ()
    return first in wanted and bool((values == first).all())


def is_own_draw(module: nn.Module) -> bool:
    """Whether a layer is as an initialisation of the user's left it: drawn, with a constant bias.

    A bias that training or a checkpoint wrote is not one number.
    """
    own = dict(module.named_parameters(recurse=False))
    bias, weight = own.get("bias"), own.get("weight")
    if (
        bias is None
        or weight is None
        or isinstance(module, _NORMS)
        or _unpickled(weight)
    ):
        return False
    if not 1 <= version_of(weight) <= _OWN_INIT:
        return False
    return is_constant(module, "bias", bias) and holds_draw(weight)


def holds_draw(weight: Tensor) -> bool:
    """Whether the values are as many different ones as a draw gives, with no heavy tails."""
    values = _values(weight)
    if values is None or len(values) < _ENOUGH:
        return False
    centred = values - values.mean()
    spread = centred.square().mean()
    different = set(values[:_ENOUGH].tolist())
    if spread <= 0 or len(different) < _ENOUGH // 2:
        return False  # a filter set by hand
    tails = float(centred.pow(4).mean() / spread.square())
    # those of trained weights are heavier
    return tails < 3 + 5 * math.sqrt(24 / len(values))


def holds_uniform(weight: Tensor) -> bool:
    """Whether the values are a uniform draw of `torch.nn.init`, up to one of its bounds."""
    values = _values(weight) if weight.ndim > 1 else None
    if values is None or len(values) < _ENOUGH:
        return False
    outs, ins = (n * weight[0][0].numel() for n in weight.shape[:2])
    bounds = [math.sqrt(6 / (outs + ins)), math.sqrt(3 / ins)]
    highest = float(values.abs().max())
    filled = [highest / (gain * bound) for gain in _GAINS for bound in bounds]
    room = 1 + torch.finfo(weight.dtype).eps
    near = 1 - 8 / len(values)
    spread = values.square().mean()
    tails = float(values.pow(4).mean() / spread.square())
    level = abs(tails - 1.8) < 5 / math.sqrt(len(values))  # 3 of a normal one
    return level and any(near < share <= room for share in filled)


def holds_normal(weight: Tensor) -> bool:
    """Whether the values are one normal draw, of a spread by which initialisations draw.

    Rows and columns of a draw are alike up to chance; those of trained weights differ in length,
    and those of features or of a basis do not differ at all.
    """
    values = _values(weight) if weight.ndim > 1 else None
    if values is None or len(values) < 2 * _ENOUGH or len(values) != weight.numel():
        return False
    n = len(values)
    spread = float(values.std())
    if not spread or abs(float(values.mean())) > 4 * spread / math.sqrt(n):
        return False
    tails = float((values / spread).pow(4).mean())
    if abs(tails - 3) > 4 * math.sqrt(24 / n) or not _is_usual(weight, spread, n):
        return False
    table = values.view(len(weight), -1) / spread
    return _is_even(table) and _is_even(table.t())


def _is_usual(weight: Tensor, spread: float, n: int) -> bool:
    """Whether initialisations draw with this spread, as far as `n` values tell it."""
    outs, ins = (size * weight[0][0].numel() for size in weight.shape[:2])
    usual = [0.01, 0.02, 0.05, 0.1, 1.0]
    for gain in _GAINS:
        usual += [gain / math.sqrt(ins), gain / math.sqrt(outs)]
        usual.append(gain * math.sqrt(2 / (ins + outs)))
    return any(abs(spread / one - 1) < 3 / math.sqrt(2 * n) for one in usual)


def _is_even(table: Tensor) -> bool:
    """Whether the rows of a table of unit spread differ in length as those of one draw do."""
    rows, width = table.shape
    if min(rows, width) < 4:
        return True
    squares = table.square().sum(1)
    ratio = float(squares.var()) / (2 * width)
    room = 4 * math.sqrt(2 / (rows - 1))
    return 1 / (1 + room) - 0.1 < ratio < 1 + room


def is_from_elsewhere(tensor: Tensor) -> bool:
    """Whether no initialisation gave the values: a file did, or a loop that wrote many times."""
    return (_unpickled(tensor) and not tensor._backward_hooks) or version_of(
        tensor
    ) > _TRAINED


def _unpickled(tensor: Tensor) -> bool:
    """Whether the parameter was read from a file as a whole, which counts as one write too."""
    # `torch._utils._rebuild_parameter` sets it
    return tensor._backward_hooks is not None


def _bound(module: nn.Module, key: str) -> float | None:
    """Of the uniform distribution that a constructor of torch's draws from."""
    if getattr(type(module), "reset_parameters", None) is not _inherited(module):
        return None
    if isinstance(module, (nn.Linear, _ConvNd)):
        fan_in = module.weight[0].numel()
        if not fan_in:
            return None
        return 1 / math.sqrt(fan_in)
    if isinstance(module, nn.Bilinear):
        return 1 / math.sqrt(module.weight.size(1))
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return 1 / math.sqrt(module.hidden_size)
    if isinstance(module, nn.MultiheadAttention) and key.endswith("weight"):
        rows, columns = getattr(module, key).shape
        return math.sqrt(6 / (rows + columns))
    return None


def _inherited(module: nn.Module) -> object:
    """The `reset_parameters` of torch's class below a user's; ``None`` equals no method."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn"):
            return getattr(kind, "reset_parameters", None)
    return None


def _uniform(values: Tensor, bound: float, dtype: torch.dtype) -> bool:
    highest = float(values.abs().max())
    room = 1 + torch.finfo(dtype).eps
    if highest > bound * room or highest == 0:
        return False
    return len(values) < _ENOUGH or highest > 0.9 * bound


def _values(tensor: Tensor) -> Tensor | None:
    """The values in float32, of a large tensor some of them; None where they cannot be read."""
    try:
        with torch.no_grad():
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // _READ)
            if not flat.is_floating_point():
                return None
            return flat[::step].float()
    except (RuntimeError, NotImplementedError, TypeError):
        return None
