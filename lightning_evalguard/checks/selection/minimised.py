"""Which losses does training make small? The graph of what it runs backward from tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from lightning_evalguard.instruments.dispatch import unseen

_NODES = 256  # of a graph that are looked at
_KINDS = {
    "NllLoss": "nll_loss",
    "NllLoss2D": "nll_loss",
    "MseLoss": "mse_loss",
    "BinaryCrossEntropy": "binary_cross_entropy",
    "BinaryCrossEntropyWithLogits": "binary_cross_entropy_with_logits",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
    "SoftMarginLoss": "soft_margin_loss",
    "MultiMarginLoss": "multi_margin_loss",
}
# what keeps the sign of each of its inputs, and what does where it scales by a number above 0
_KEEP = {
    "Add",
    "Mean",
    "Sum",
    "ToCopy",
    "Alias",
    "Squeeze",
    "View",
    "Stack",
    "Cat",
    "Clone",
}
_SCALE = {"Mul", "Div"}


class LossTerm(NamedTuple):
    """A loss of some kind that is a part of what training makes small, and what it is scaled by."""

    kind: str
    factors: tuple[Tensor, ...]


def losses_in(root: Tensor) -> list[LossTerm]:
    """The losses of which `root` is made, before its graph is gone. Nothing is read.

    A subtraction, a negation, a product of two losses or a function of the user's own ends the
    search: what lies behind it may be made large.
    """
    found: list[LossTerm] = []
    waiting: list[tuple[Any, tuple[Tensor, ...]]] = [(root.grad_fn, ())]
    seen: set[Any] = set()
    while waiting and len(seen) < _NODES:
        node, factors = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if name in _KINDS:
            found.append(LossTerm(_KINDS[name], factors))
            continue
        if name in _SCALE:
            other = _number_of(node)
            if other is None:
                continue
            factors = (*factors, other)
        elif name not in _KEEP:
            continue
        waiting += [(before, factors) for before, _ in node.next_functions]
    return found


def lowered(terms: Iterable[LossTerm]) -> Counter[str]:
    """How many losses of each kind are made small, by their kind."""
    with unseen():
        return Counter(t.kind for t in terms if all(float(f) > 0 for f in t.factors))


def _number_of(node: Any) -> Tensor | None:
    """The number on the host by which a node multiplies or divides.

    What hooks saved is left alone: asked for it, a checkpoint would compute its part again. So is
    all where torch does not say whether there are any (2.9 and before).
    """
    try:
        saved = node._raw_saved_other
        other = saved.data if saved.unpack_hook is None else None
    except (AttributeError, RuntimeError):
        return None
    if isinstance(other, Tensor) and other.device.type == "cpu" and other.numel() == 1:
        return other
    return None
