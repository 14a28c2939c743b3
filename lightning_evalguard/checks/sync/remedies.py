"""What to write in place of an operator that makes the host wait."""

from __future__ import annotations

import re

from lightning_evalguard.checks.sync.owner import Where

OPERATORS = {
    "_local_scalar_dense": "item",
    "_unique": "unique",
    "_unique2": "unique",
    "unique_dim": "unique",
    "_ctc_loss": "ctc_loss",
    "cpu": "copy to the host",
    "tolist": "copy to the host",
    "numpy": "copy to the host",
    "__array__": "copy to the host",
    "__repr__": "print",
    "__format__": "print",
}
_READ = "Keep the tensor; read it once after the last batch, or log it with self.log."
_LATER = "Collect the tensors; take their unique values once after the last batch."
_SIZE = (
    "The size of the result is known to the device alone: "
    "use torch.where, or weigh by the mask."
)
_REMEDIES = {
    "item": _READ,
    "print": "Print after the last batch, or log it with self.log.",
    "copy to the host": "Keep it on the device; copy it once after the last batch.",
    "copy to the device": "Make it once in __init__ with self.register_buffer, or copy from pinned "
    "memory with non_blocking=True.",
    "nonzero": _SIZE,
    "masked_select": _SIZE,
    "unique": _LATER,
    "unique_consecutive": _LATER,
    "bincount": "Count with torch.zeros(n, device=x.device).scatter_add_(0, x, ones): its size is "
    "known.",
    "equal": "Keep (a == b).all() as a tensor.",
    "repeat_interleave": "Pass output_size=.",
    "ctc_loss": "Pass targets, joined to one dimension, and lengths as int32 tensors on the CPU: "
    "cuDNN takes them so.",
    "synchronize": "Leave it out of the step.",
}
_LENGTHS = (
    "Let the batch hold the lengths as a list: `pack_padded_sequence` takes one, and nothing moves "
    "it to the device."
)
_ARE_LENGTHS = re.compile(
    r"pack_padded|(?:\b|_)len(?:gth)?s?\.(?:cpu|tolist)\(", re.IGNORECASE
)
_BRANCH = "Choose with torch.where, or decide on a number that the host has."
# What the source text says when a number is read for its own sake, and not to branch on it.
_READS = re.compile(r"\.item\(|\.tolist\(|\b(float|int|range|tensor)\(")


_OR_LOG = ", or log it with self.log"


def sync_remedy(op: str, at: Where, logs: bool = True) -> str:
    """One imperative, by the operator and by what called it.

    Args:
        op: What waits.
        at: Where.
        logs: Whether the step belongs to a LightningModule, which has ``self.log``.
    """
    remedy = _remedy_of(op, at)
    if logs:
        return remedy
    return remedy.replace(_OR_LOG, "")


def _remedy_of(op: str, at: Where) -> str:
    if "distributions" in at.inside:
        return "Pass validate_args=False."
    if "grad_scaler" in at.inside:
        return "Train in bfloat16, which needs no scaler; a scaler needs this one read."
    if "clip_grad" in at.inside:
        return "Pass error_if_nonfinite=False."
    if op == "copy to the host" and _ARE_LENGTHS.search(at.expression):
        return _LENGTHS
    if op == "item" and not _READS.search(at.expression):
        return _BRANCH
    return _REMEDIES.get(op, _READ)


# Of a torchmetrics object: what its validation waits for; its counting is replaced by the matrix.
_VALIDATES = frozenset({"unique", "item"})
_COUNTS = frozenset({"bincount", "nonzero"})


def remedy_of_metric(op: str, at: Where) -> str:
    """How a torchmetrics object avoids its wait; empty where nothing is known."""
    if at.setting and (op in _VALIDATES or "nan" in at.setting):
        return f"Pass {at.setting} to the metric."
    if op in _COUNTS and at.classifies:
        return "Let the guard's own matrix count: it never waits."
    return ""


__all__ = ["OPERATORS", "remedy_of_metric", "sync_remedy"]
