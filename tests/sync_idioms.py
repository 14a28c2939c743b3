"""Idioms that make the host wait for the device, and idioms that do not: one line of source each.

As a program, ``python sync_idioms.py cuda``, runs each on that device under the watch and prints
what was heard and, on the stand-in for the CUDA runtime, what the runtime saw, as JSON.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import json
import linecache
import math
import os
import pickle
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Source, how often it is heard on a device, and how often the CUDA runtime of torch 2.14 was made
# to wait: an operator that waits twice, and `print`, are one event.
WAITS: list[tuple[str, int, int]] = [
    ("x.sum().item()", 1, 1),
    ("x.tolist()", 1, 1),
    ("y.cpu()", 1, 1),
    ("x.cpu().numpy()", 1, 1),
    ("float(s)", 1, 1),
    ("int(n)", 1, 1),
    ("bool(s > 0)", 1, 1),
    ("complex(s)", 1, 1),
    ("if s > 0: pass", 1, 1),
    ("s > 0 and n", 1, 1),
    ("not s", 1, 1),
    ("n if s > 0 else y", 1, 1),
    ("range(n)", 1, 1),
    ("[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11][n]", 1, 1),
    ("[float(v) for v in x[0]]", 4, 4),
    ("[v for v in y if v > 1]", 8, 8),
    ("max(s, s + 1)", 1, 1),
    ("min([s, s + 1])", 1, 1),
    ("sum(v.item() for v in x[0])", 4, 4),
    ("round(s.item(), 2)", 1, 1),
    ('f"{s}"', 1, 1),
    ('f"{s:.3f}"', 1, 1),
    ('"%.3f" % s', 1, 1),
    ('"{}".format(x)', 1, 9),
    ("str(x)", 1, 9),
    ("repr(x)", 1, 9),
    ("print(x, file=sink)", 1, 9),
    ('print(f"loss {s:.2f}", file=sink)', 1, 1),
    ('x.to("cpu")', 1, 1),
    ('x.to(device="cpu")', 1, 1),
    ('x.to(torch.device("cpu"))', 1, 1),
    ('x.to("cpu", torch.float64)', 1, 1),
    ("h.copy_(x)", 1, 1),
    ("hy[:4] = y[:4]", 1, 1),
    ("x.copy_(h)", 1, 1),
    ("x[0] = h[0]", 1, 1),
    ("h.to(dev)", 1, 1),
    ("h.to(x)", 1, 1),
    ("h.to(x.device)", 1, 1),
    ("h.to(dev, torch.float64)", 1, 1),
    ("torch.tensor([1.0, 2.0], device=dev)", 1, 1),
    ("torch.tensor(1.0, device=dev)", 1, 1),
    ("torch.tensor(3, device=x.device)", 1, 1),
    ("torch.tensor(np.ones(3), device=dev)", 1, 1),
    ("torch.as_tensor([1.0, 2.0], device=dev)", 1, 1),
    ("torch.as_tensor(np.ones(3), device=dev)", 1, 1),
    ("torch.from_numpy(np.ones(3)).to(dev)", 1, 1),
    ("torch.tensor([s, s])", 2, 2),
    ("torch.tensor([[s, s], [s, s]])", 4, 4),
    ("torch.tensor([v for v in x[0]])", 4, 4),
    ("x.new_tensor([1.0, 2.0])", 1, 1),
    ("x[m]", 1, 1),
    ("x[m] = x[m] * 2", 2, 2),
    ("x[x > 0].mean()", 1, 1),
    ("x[~m]", 1, 1),
    ("x[m, 0]", 1, 1),
    ("x[y.bool()]", 1, 1),
    ("x[torch.tensor([True, False] * 4, device=dev)]", 2, 2),
    ("x[[0, 2]]", 1, 1),
    ("x[np.array([0, 2])]", 1, 1),
    ("x[torch.randperm(8)]", 1, 1),
    ("x[hy]", 1, 1),
    ("x[n]", 1, 1),
    ("x[0, n]", 1, 1),
    ("x[:n]", 1, 1),
    ("x[n:]", 1, 1),
    ("x[y > 1] += 1", 2, 2),
    ("x.masked_select(m2)", 1, 1),
    ("torch.masked_select(x, m2)", 1, 1),
    ("x.nonzero()", 1, 1),
    ("torch.nonzero(m)", 1, 1),
    ("torch.nonzero(m, as_tuple=True)", 1, 1),
    ("torch.where(m)", 1, 1),
    ("torch.argwhere(m)", 1, 1),
    ("m.nonzero().squeeze(1)", 1, 1),
    ("torch.unique(y)", 1, 1),
    ("y.unique()", 1, 1),
    ("torch.unique(y, return_counts=True)", 1, 1),
    ("torch.unique(y, return_inverse=True)", 1, 1),
    ("torch.unique(x, dim=0)", 1, 3),
    ("torch.unique_consecutive(y)", 1, 1),
    ("torch.bincount(y)", 1, 2),
    ("torch.bincount(y, minlength=10)", 1, 2),
    ("y.bincount(minlength=3)", 1, 2),
    ("torch.repeat_interleave(x, y, dim=0)", 1, 2),
    ("x.repeat_interleave(y, 0)", 1, 2),
    ("torch.repeat_interleave(y)", 1, 2),
    ("torch.equal(x, x + 1)", 1, 1),
    ("x.equal(x2)", 1, 1),
    ("torch.allclose(x, x2)", 1, 1),
    ("(x == x).all().item()", 1, 1),
    ("if (x == x).all(): pass", 1, 1),
    ("if torch.isnan(x).any(): pass", 1, 1),
    ("assert not torch.isnan(x).any()", 1, 1),
    ("assert torch.isfinite(s)", 1, 1),
    ("assert y.max() < 10", 1, 1),
    ("s in [1.0, 2.0]", 2, 2),
    ("1.0 in x", 1, 1),
    ("s == 1 or s == 2", 1, 1),
    ("F.one_hot(y)", 1, 1),
    ("F.one_hot(y, num_classes=-1)", 1, 1),
    ("F.ctc_loss(logp, tgt, ilen, tlen)", 4, 6),
    ("F.ctc_loss(logp, tgt, (6, 6), (2, 2))", 3, 5),
    ("torch.nn.utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)", 1, 1),
    ("float(torch.nn.utils.clip_grad_norm_(params, 1.0))", 1, 1),
    ("torch.histc(x)", 2, 2),
    ("torch.tril_indices(3, 3).to(dev)", 1, 1),
    ("torch.linspace(0, 1, 3).to(dev)", 1, 1),
    ("torch.randn(3).to(dev)", 1, 1),
    ("torch.full((2,), s.item(), device=dev)", 1, 1),
    ("torch.arange(n, device=dev)", 1, 1),
    ("torch.arange(n.item())", 1, 1),
    ("torch.zeros(int(n), device=dev)", 1, 1),
    ("torch.zeros(n, device=dev)", 1, 1),
    ("x.view(n, -1)", 1, 1),
    ("x.split([int(n), 8 - int(n)])", 2, 2),
    ("x.topk(int(n) % 4 + 1)", 1, 1),
    ("x.topk(n % 4 + 1)", 1, 1),
    ("F.interpolate(img, scale_factor=s.abs().item() + 1)", 1, 1),
    ("x.narrow(0, n, 1)", 1, 1),
    ("x.index_select(0, hy.to(dev))", 1, 1),
    ("torch.cuda.synchronize()", 1, 1),
    ("(e := torch.cuda.Event(), e.record(), e.synchronize())", 1, 1),
    ("torch.cuda.current_stream().synchronize()", 1, 1),
    ("list(map(int, y))", 8, 8),
    ("dict(loss=s.item())", 1, 1),
    ("{int(k): 1 for k in y}", 8, 8),
    ("sorted(y.tolist())", 1, 1),
    ("tuple(x.shape[0] for _ in range(n))", 1, 1),
    ("np.float32(s.item())", 1, 1),
    ("np.asarray(x.cpu())", 1, 1),
    ("x.detach().cpu().numpy()", 1, 1),
    ("math.sqrt(s)", 1, 1),
    ("math.isnan(s)", 1, 1),
    ("isinstance(s.item(), float)", 1, 1),
    ("pickle.dumps(x)", 1, 1),
    ("copy.deepcopy(x).sum().item()", 1, 1),
    ("torch.save(x, buf)", 1, 1),
    ("F.softmax(x, -1).max(-1).values.tolist()", 1, 1),
    ("x.abs().max().item() > 1", 1, 1),
    ("n.__index__()", 1, 1),
    ("s.__float__()", 1, 1),
    ("x.type(torch.FloatTensor)", 1, 1),
    ("x.data.cpu()", 1, 1),
    ("torch.Tensor.item(s)", 1, 1),
    ("torch.ops.aten.item(s)", 1, 1),
    ("x.cpu().mean().item()", 1, 1),
    ("torch.quantile(x, 0.5).item()", 1, 1),
    ("x.median().item()", 1, 1),
    ("torch.isin(y, hy.to(dev)).any().item()", 2, 2),
    ("torch.bucketize(x, h[0].to(dev))", 1, 1),
    ("x.is_nonzero() if x.numel() == 1 else s.is_nonzero()", 1, 1),
    ("torch.is_nonzero(s)", 1, 1),
    ("torch.block_diag(x, x).any().item()", 1, 1),
    ("torch.nanmedian(x).item()", 1, 1),
    ("x.masked_fill(m2, s.item())", 1, 1),
    ("x.clamp(max=s.item())", 1, 1),
    ("x * s.item()", 1, 1),
    ("torch.where(m2, x, s.item())", 1, 1),
    ("torch.nn.functional.nll_loss(F.log_softmax(x, -1), y).item()", 1, 1),
    ("torch.stack([s, s]).tolist()", 1, 1),
    ("torch.stack([s, s]).cpu()", 1, 1),
    ("x.argmax(-1).eq(y).float().mean().item()", 1, 1),
    ("x.masked_fill(m2, s)", 1, 1),
    ("x[m] = s", 1, 1),
    ("x.masked_fill_(m2, s)", 1, 1),
    ("x[m2] = s", 1, 1),
    ("y.masked_select(m)", 1, 1),
    ("x.index_put_((m,), s)", 1, 1),
    ("torch.nn.functional.adaptive_avg_pool2d(img, int(n))", 1, 1),
    ("x.type(torch.DoubleTensor)", 1, 1),
    ("torch.nanquantile(x, 0.5).tolist()", 1, 1),
    ("x.masked_scatter(m2, x2).sum().item()", 1, 1),
    ("len(torch.unique(y))", 1, 1),
    ("y.unique().numel()", 1, 1),
    ("int(y.max()) + 1", 1, 1),
    ("torch.zeros(int(y.max()) + 1, device=dev)", 1, 1),
    ("next(iter(y)).item()", 1, 1),
    ("torch.vstack([s, s]).tolist()", 1, 1),
    ("x.mean().cpu().item()", 1, 1),
    ("torch.full((2,), s, device=dev)", 1, 1),
    ("torch.tensor(x.sum().item(), device=dev)", 2, 2),
    ("losses.append(s.item())", 1, 1),
    ("losses.append(float(x.mean()))", 1, 1),
    ("total.__iadd__(s.item())", 1, 1),
    ("x.norm().item() ** 2", 1, 1),
    ("torch.cuda.synchronize(dev)", 1, 1),
    ("torch.accelerator.synchronize()", 1, 1),
    ('x.sum().to("cpu").numpy()', 1, 1),
    ("torch.masked.mean(x, mask=m2)", 1, 1),
    ("F.gaussian_nll_loss(x, x2, x2.abs() + 1)", 1, 1),
]

FREE: list[str] = [
    "x + 1",
    "x * s",
    "x @ x.t()",
    "F.cross_entropy(x, y)",
    "F.cross_entropy(x, y, ignore_index=2)",
    "F.nll_loss(F.log_softmax(x, -1), y)",
    "F.binary_cross_entropy_with_logits(x, m2.float())",
    "F.mse_loss(x, x2)",
    "F.smooth_l1_loss(x, x2)",
    'F.kl_div(F.log_softmax(x, -1), F.softmax(x2, -1), reduction="batchmean")',
    "F.embedding(y, x)",
    "F.dropout(x, 0.5)",
    "F.layer_norm(x, (4,))",
    "F.one_hot(y, 10)",
    "F.one_hot(y, num_classes=10)",
    "F.one_hot(y.clamp(0, 3), 4).float()",
    "F.one_hot((y + (y * 0)).clamp(0, 3), 4)",
    "torch.where(m2, x, x2)",
    "torch.where(m2, 1.0, 0.0)",
    "torch.where(x > 0, x, 0.0)",
    "x.masked_fill(m2, 0.0)",
    "x.masked_fill_(m2, 1.0)",
    "x[m2] = 0.0",
    "x[m] = 0.0",
    "x[y.clamp(0, 7)]",
    "x[arange, y.clamp(0, 3)]",
    "x.gather(1, y.clamp(0, 3).unsqueeze(1))",
    "x.scatter_add(1, y.clamp(0, 3).unsqueeze(1), x[:, :1])",
    "x.scatter_(1, y.clamp(0, 3).unsqueeze(1), 1.0)",
    "torch.zeros(10, device=dev).scatter_add_(0, y, torch.ones(8, device=dev))",
    "x.index_select(0, y.clamp(0, 7))",
    "x.index_add(0, y.clamp(0, 7), x)",
    "x.index_copy(0, y.clamp(0, 7), x)",
    "x.index_fill(0, y.clamp(0, 7), 0.0)",
    "torch.zeros(10, device=dev).index_put_((y,), torch.ones(8, device=dev), accumulate=True)",
    "torch.bucketize(x, x[0])",
    "torch.searchsorted(x[0], x[1])",
    "x.topk(2)",
    "x.sort()",
    "x.argsort()",
    "x.argmax(-1)",
    "x.max(-1)",
    "x.median()",
    "x.cumsum(0)",
    "(x.argmax(-1) == y).float().mean()",
    "(x == x2).all()",
    "torch.isnan(x).any()",
    "torch.isfinite(x).all()",
    "x.norm()",
    "x.std()",
    "x.var(0)",
    "torch.full((2,), 1.0, device=dev)",
    "torch.full_like(x, 3.0)",
    "torch.zeros(3, device=dev)",
    "torch.ones_like(x)",
    "torch.arange(8, device=dev)",
    "torch.eye(3, device=dev)",
    "torch.linspace(0, 1, 8, device=dev)",
    "torch.randn(3, device=dev)",
    "torch.rand_like(x)",
    "torch.randperm(8, device=dev)",
    "torch.randint(0, 3, (8,), device=dev)",
    "torch.bernoulli(x.sigmoid())",
    "torch.multinomial(x.softmax(-1), 1)",
    "torch.multinomial(x.softmax(-1), 2, replacement=True)",
    "torch.nonzero_static(m, size=8)",
    "torch.repeat_interleave(x, 2, dim=0)",
    "torch.repeat_interleave(x, y, dim=0, output_size=12)",
    "x.repeat_interleave(2, 0)",
    "x.split(2)",
    "x.chunk(2)",
    "x.to(dev)",
    "x.to(torch.float64)",
    "x.to(x2)",
    "x.half().float()",
    "x.type_as(x2)",
    "x.clone()",
    "x.detach()",
    "x.copy_(x2)",
    "x.add_(1)",
    "x[0] = 1.0",
    "x[0] = x2[0]",
    "x[0, 1] = s",
    "x.fill_(s)",
    "x.fill_(2.0)",
    "x.zero_()",
    "h.to(dev, non_blocking=True)",
    'x.to("cpu", non_blocking=True)',
    "torch.cat([x, x2])",
    "torch.stack([s, s])",
    "torch.rand(1).item()",
    "torch.randperm(4).tolist()",
    "h.mean().item()",
    "h.tolist()",
    "h.numpy()",
    "np.asarray(h)",
    "float(h[0, 0])",
    "print(h, file=sink)",
    'f"{h[0, 0]:.2f}"',
    "h[h > 0]",
    "hy.unique()",
    "torch.equal(h, h)",
    "torch.tensor([1.0, 2.0])",
    "torch.tensor(1.0).item()",
    "torch.from_numpy(np.ones(3)).sum().item()",
    "torch.nn.utils.clip_grad_norm_(params, 1.0)",
    "torch.nn.utils.clip_grad_value_(params, 1.0)",
    "F.scaled_dot_product_attention(img, img, img)",
    "F.interpolate(img, scale_factor=2.0)",
    "F.grid_sample(img, grid, align_corners=False)",
    "F.pad(x, (1, 1))",
    "F.embedding(y, x, max_norm=1.0)",
    "F.embedding_bag(y, x, offs)",
    "x.unbind(0)",
    "[v for v in x]",
    "list(x)",
    "len(x)",
    "x.shape[0]",
    "x.numel()",
    "x.is_cuda",
    "x.requires_grad",
    "hash(x)",
    "x.dtype",
    "x.triu()",
    "torch.cdist(x, x2)",
    'torch.einsum("ij,kj->ik", x, x2)',
    "torch._assert_async(m2.any() | True)",
    "torch.nan_to_num(x)",
    "x.clamp(0, 1)",
    "x.clamp(max=s)",
    "torch.maximum(x, s)",
    "torch.lerp(x, x2, 0.5)",
    "torch.lerp(x, x2, s)",
    "torch.addcmul(x, x, x2, value=0.5)",
    "x.addcdiv_(x, x2 + 9)",
    "torch._foreach_mul_([x], 0.5)",
    "torch._foreach_norm([x, x2])",
    "torch.distributions.Normal(x, x.abs() + 1, validate_args=False).rsample()",
    "torch.distributions.Categorical(logits=x, validate_args=False).sample()",
    "F.gumbel_softmax(x, hard=True)",
    "x.expand(2, 8, 4)",
    "x.roll(1, 0)",
    "x.flip(0)",
    "torch.histc(x, 4, min=-1, max=1)",
    "F.batch_norm(x, bn_mean, bn_var, training=True)",
    "F.max_pool2d(img, 2)",
    "torch.isin(y, y)",
    "torch.trapezoid(x)",
    "torch.logsumexp(x, -1)",
    "torch.diff(x)",
    "F.normalize(x)",
    "F.cosine_similarity(x, x2)",
    "F.pairwise_distance(x, x2)",
    "F.triplet_margin_loss(x, x2, x)",
    "F.huber_loss(x, x2)",
    "F.multi_margin_loss(x, y.clamp(0, 3))",
    "torch.nn.utils.parameters_to_vector(params)",
    "torch.logical_and(m2, m2).sum()",
    "m.sum() / m.numel()",
    "x.mean().detach()",
    "x.sum() / y.numel()",
    "torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)",
    "torch.cartesian_prod(y, y)",
    "torch.full_like(x, 2.0).mul_(s)",
    "losses.append(s.detach())",
    "total.add_(s)",
    "total.copy_(s, non_blocking=True)",
    "total.fill_(0.5)",
    "torch.stack([s.detach(), s.detach()]).mean()",
    "torch.kthvalue(x, 2)",
    "torch.mode(x)",
    "x.unfold(0, 2, 1)",
    "torch.nanmean(x)",
    "x.where(m2, x2)",
    "F.cross_entropy(x, y, weight=x[0].abs())",
    "F.cross_entropy(x, y, label_smoothing=0.1)",
    "F.binary_cross_entropy(x.sigmoid(), m2.float())",
    "F.unfold(img, 2)",
    "torch.tensor_split(x, 3)",
    "x.sum(dim=(0, 1))",
    "x.softmax(-1).log().mul(-1).sum(-1).mean()",
    "torch.where(torch.isfinite(s), s, torch.zeros_like(s))",
    "torch.bmm(seq, seq.transpose(1, 2))",
    "torch.nn.utils.rnn.pad_sequence([x, x2])",
]

# Where a CPU run hears less: what its Python never gets to see.
ON_CPU: dict[str, int] = {
    "x[[0, 2]]": 0,
    "x[np.array([0, 2])]": 0,
    "F.ctc_loss(logp, tgt, ilen, tlen)": 1,
    "F.ctc_loss(logp, tgt, (6, 6), (2, 2))": 1,
    "pickle.dumps(x)": 0,
    "torch.save(x, buf)": 0,
    "x.type(torch.FloatTensor)": 0,
    "x.type(torch.DoubleTensor)": 0,
}
# These come from patches of their own, and mean nothing without a device.
SYNCHRONIZE = [source for source, *_ in WAITS if "synchronize" in source]


def names(x: Tensor, y: Tensor) -> dict[str, Any]:
    """What the idioms speak of, made without a wait.

    Args:
        x: (8, 4) float32, on the device.
        y: (8,) int64 in 0..3, on the device.
    """
    x, y = x.clone(), y.clone()
    params = [torch.nn.Parameter(x.new_ones(3)) for _ in range(2)]
    for param in params:
        param.grad = x.new_ones(3)
    on_device = {
        "x": x,
        "x2": x + 1,
        "y": y,
        "m": torch.arange(8, device=x.device) % 2 == 0,
        "m2": x > 0,
        "s": x.new_full((), 1.5),
        "n": y.new_full((), 2),
        "logp": x.new_zeros(6, 2, 5).log_softmax(-1),
        "tgt": y.new_ones(2, 2),
        "seq": x.new_ones(8, 3, 2),
        "img": x.new_ones(1, 1, 4, 4),
        "grid": x.new_zeros(1, 2, 2, 2),
        "offs": torch.arange(0, 8, 4, device=x.device),
        "arange": torch.arange(8, device=x.device),
        "bn_mean": x.new_zeros(4),
        "bn_var": x.new_ones(4),
        "total": x.new_zeros(()),
    }
    on_host = {
        "h": torch.ones(8, 4),
        "hy": torch.arange(8) % 4,
        "ilen": torch.full((2,), 6),
        "tlen": torch.full((2,), 2),
    }
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        on_device["seq"], torch.full((8,), 3), batch_first=True
    )
    other = {"params": params, "packed": packed, "dev": x.device, "losses": []}
    return on_device | on_host | other | {"sink": io.StringIO(), "buf": io.BytesIO()}


MODULES = {
    "torch": torch, "F": F, "np": np, "math": math, "pickle": pickle, "copy": copy,
}  # fmt: skip

_MUTATES = re.compile(r"_\(|\] [+*]?= |losses")


def program(idioms: list[str], indent: str = "    ") -> str:
    """The body of a function ``(x, y)`` that runs the idioms, each on its own line."""
    lines = []
    again = "globals().update(names(x, y))"
    lines.append(again)
    for source in idioms:
        lines += ["with quiet:", f"    {source}"]
        if _MUTATES.search(source):
            lines.append(again)
    return "\n".join(indent + line for line in lines)


class _Runtime:
    """How often the stand-in for the CUDA runtime was made to wait; nothing without it."""

    def __init__(self) -> None:
        path = os.environ.get("LD_PRELOAD", "")
        self._rig = ctypes.CDLL(path) if "libfc" in path else None

    def waits(self) -> int:
        if self._rig is None:
            return 0
        counts = (ctypes.c_long * 9)()
        self._rig.fc_counts(counts)
        return counts[0] + counts[1] + counts[2] + counts[6]


def run_each(device: str) -> Iterator[tuple[str, int, int]]:
    """Run every idiom on `device`: its source, how often a wait was heard, and was made."""
    from lightning_evalguard.checks.sync.overrides import WaitWatch

    heard: list[str] = []
    watch = WaitWatch(device, lambda op, frame, seconds: heard.append(op))
    runtime = _Runtime()
    for i, source in enumerate([source for source, *_ in WAITS] + FREE):
        file = f"idiom_{i}.py"
        linecache.cache[file] = (len(source), None, [source + "\n"], file)
        given = (
            names(torch.ones(8, 4).to(device), (torch.arange(8) % 4).to(device))
            | MODULES
        )
        code = compile(source, file, "exec")
        heard.clear()
        watch.open(())
        before = runtime.waits()
        # values are garbage on the stand-in: a shape or an assertion may be wrong
        with contextlib.suppress(RuntimeError, AssertionError):
            exec(code, given)
        waited = runtime.waits() - before
        watch.close()
        yield source, len(heard), waited
    watch.stop()


if __name__ == "__main__":
    print(json.dumps(list(run_each(sys.argv[1]))))
