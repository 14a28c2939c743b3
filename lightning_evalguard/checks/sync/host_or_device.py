"""On the CPU nothing waits: which tensors would live on the device, and which reads would wait.

A tensor does not say where it would live in a run on a device. That is followed from the model and
the batch, one operator after the other. A tensor whose origin is unknown is taken to live on the
host.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)

from lightning_evalguard.checks.sync.listeners import (
    TO_DEVICE,
    TO_HOST,
    caller,
    here,
    tell,
)
from lightning_evalguard.instruments.dispatch import below, tensors_in
from lightning_evalguard.instruments.dynamo import skip_dynamo
from lightning_evalguard.instruments.source import PLUMBING, expression_of, nearest
from lightning_evalguard.instruments.tracebacks import cut

# On the CPU, a number read inside another operator than these says nothing about CUDA's kernel for
# it: `multinomial`, `embedding(max_norm=)`, `_assert_async`, ...
_READS = frozenset(
    {
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "allclose",
        "histc",
        "_linalg_check_errors",
    }
)
# Under inference mode an operator arrives whole. These read numbers of their own beside those that
# they are given: they are seen into, which moves no bit, for no matrix is multiplied there.
_SEEN_INTO = frozenset({"one_hot", "narrow", "quantile", "nanquantile"})
# These read the value they are given, if it is a tensor on the device: `x[mask] = tensor`.
_VALUES = frozenset(
    {"masked_fill", "masked_fill_", "index_put", "index_put_", "_index_put_impl_"}
)
_INDEXES = frozenset({"index", "index_put", "index_put_"})
# Their gradients torch computes by other formulas below a dispatch mode, whose last bits differ: of
# a loss where precisions are mixed, of masked_fill where the value is trained.
_LOSSES = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})
_FORMULAS = _LOSSES | {"prod", "masked_fill", "masked_fill_"}
_LIFTS = ("tensor(", "from_numpy(")
_SELF = frozenset({"self"})
# Modules of int8 weights have kernels for the CPU alone: there they read their scales.
_INT8 = os.path.join("ao", "nn", "quantized", "")
_ON_CPU = re.compile(r"""device\s*[=(]\s*(torch\.device\()?\s*["']cpu""")


def _gives_classes(text: str) -> bool:
    """Whether a call of `one_hot` says how many classes there are: on CUDA nothing is read then."""
    try:
        calls = [
            node
            for node in ast.walk(ast.parse(text.strip()))
            if isinstance(node, ast.Call)
        ]
    except SyntaxError:  # a part of a statement
        return "," in text.partition("one_hot(")[2]
    given = []
    for call in calls:
        if ast.unparse(call.func).rpartition(".")[2] == "one_hot":
            named = [k.value for k in call.keywords if k.arg == "num_classes"]
            given += [ast.unparse(value) for value in (*call.args[1:2], *named)]
    return bool(given) and "-1" not in given


def _within_int8(frame: FrameType | None) -> bool:
    """Whether a module of int8 weights runs, seen from torch's code around `frame`."""
    for _ in range(12):  # the dispatch of one operator, and ours
        if frame is None or _INT8 in frame.f_code.co_filename:
            break
        frame = frame.f_back
    return frame is not None and _INT8 in frame.f_code.co_filename


class Places(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows, on a CPU run, which tensors would live on the device and which on the host.

    What is made from a tensor on the device lives there. What is made from nothing lives on the
    host, unless the source text of the call names a device. The rest is unknown. Tensors are
    known by identity, through weak references: nothing is held, no attribute is set.
    """

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else Dynamo would skip every frame under this mode for good

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # ours is skipped below, without loading Dynamo

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, tuple[Callable[[], Tensor | None], bool]] = {}
        self.operators = 0  # looked at so far
        self._running: Any = None
        self._previous = ""  # the operator that ran before
        self._args: tuple[Any, ...] = ()  # of the operator that runs
        # the backward pass of what ran would be computed otherwise here
        self.moves_bits = False

    def put(self, tensor: Tensor, on_device: bool) -> None:
        """Say where a tensor lives."""
        # a parameter is held: `torch.utils.swap_tensors` refuses one that has weak references
        refer = (
            _held(tensor)
            if isinstance(tensor, torch.nn.Parameter)
            else weakref.ref(tensor)
        )
        self._known[id(tensor)] = (refer, on_device)

    def forget(self, tensor: Tensor) -> bool | None:
        """Hold no reference to a tensor any more; where it lived, if that was known."""
        on_device = self.of(tensor)
        self._known.pop(id(tensor), None)
        return on_device

    def moved(self, tensor: Tensor, out: Tensor, on_device: bool) -> Tensor:
        """What a move of `tensor` returned; on the CPU that is `tensor` itself.

        A run on a device would have a copy in either place. Where autograd does not see it, a
        second object on the same memory stands for the copy; else where it lives is ambiguous,
        and it is taken to live on the host.
        """
        if out is tensor and self.of(tensor) is not on_device:
            if type(tensor) is Tensor and not tensor.requires_grad:
                out = tensor.detach()
            else:
                on_device = False
        self.put(out, on_device)
        return out

    def of(self, tensor: Tensor) -> bool | None:
        """Whether a tensor would live on the device; None where that is not known."""
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        return None

    def on_device(self, tensor: Tensor) -> bool:
        """Whether reading a tensor would make the host wait."""
        known = self.of(tensor)
        # what a compiled function returns was made by no operator
        if known is None:
            return compiled_anything()
        return known

    def waits(self, op: str, args: tuple[Any, ...], frame: FrameType | None) -> bool:
        """Whether the host would wait for a blocking operator on these arguments."""
        known = {self.of(a) for a in args if isinstance(a, Tensor)}
        if op == "_ctc_loss" and self._is_for_cudnn(*args):
            return False
        if op == "_local_scalar_dense":
            if True in known and _within_int8(frame):
                return False
            within = getattr(self._running, "_opname", None)
            if within is not None and within not in _READS:
                return within in _VALUES and True in known
            text = ""
            if True in known:
                text = _text_of_call(frame, PLUMBING)
            # on the CPU alone it looks whether the labels are in range
            if "one_hot(" in text:
                largest = self._previous in ("max", "aminmax")
                return largest and not _gives_classes(text)
        if True in known or None not in known:
            return True in known
        # made inside the operator that runs, or by a compiled function
        inputs = tensors_in(self._args)
        return any(self.of(tensor) for tensor in inputs) or compiled_anything()

    def _is_for_cudnn(
        self,
        scores: Tensor,
        targets: Tensor,
        lengths: Any,
        wanted: Any,
        blank: int = 0,
        *_: Any,
    ) -> bool:
        """Whether the CTC loss would be cuDNN's on a device: see ``_use_cudnn_ctc_loss``.

        That the scores have their whole length is not looked at: to read it here is a wait.
        """
        given = [t for t in (lengths, wanted) if isinstance(t, Tensor)]
        on_host = all(t.dtype == torch.int32 and self.of(t) is not True for t in given)
        # on the CPU int32 targets arrive as a copy in int64
        small = targets.dtype == torch.int32 or self._previous == "_to_copy"
        joined = targets.dim() == 1 and self.of(targets) is not True
        return (
            on_host and small and joined and scores.dtype == torch.float32 and not blank
        )

    def destination(
        self, frame: FrameType | None, *args: Any, **kwargs: Any
    ) -> bool | None:
        """Where ``tensor.to(*args, **kwargs)`` would move it; None for a change of dtype."""
        for arg in (*args, *kwargs.values()):
            if isinstance(arg, Tensor):
                return self.of(arg)
            if isinstance(arg, (str, torch.device)):
                return frame is None or "cpu" not in expression_of(frame)
        return None

    def leave(self) -> None:
        """Leave the stack of modes, also from below one that was entered later."""
        above = []
        if not any(mode is self for mode in _get_current_dispatch_mode_stack()):
            return
        while (top := _pop_mode()) is not self:
            above.append(top)
        _push_mode(self)
        self.__exit__(None, None, None)
        for mode in reversed(above):
            _push_mode(mode)

    def return_after_backward(self) -> None:
        """Enter again, after `leave`. The gradients are where their parameters are."""
        self.__enter__()  # type: ignore[no-untyped-call]
        for refer, on_device in list(self._known.values()):
            tensor = refer()
            if isinstance(tensor, torch.nn.Parameter) and tensor.grad is not None:
                self.put(tensor.grad, on_device)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "_opname", "") in _SEEN_INTO and not types:
            with self:
                seen = func.decompose(*args, **kwargs or {})
            if seen is not NotImplemented:
                return seen
        self.operators += 1
        outer = self._running, self._args
        self._running, self._args = func, args
        try:
            out = below(func, args, kwargs or {})
        except BaseException as error:
            cut(error)
            raise
        finally:
            self._running, self._args = outer
        some, on_device = self._of_arguments(args)
        name = self._previous = getattr(func, "_opname", "")
        inputs = tensors_in([*args, *(kwargs or {}).values()])
        if name in _FORMULAS and _moves_bits(name, list(inputs)):
            self.moves_bits = True
        if not some or name == "lift_fresh":
            on_device = self._made(name, caller())
        elif name == "copy_":
            self._copied(*args)
            return out  # `args[0]` stays where it is
        elif on_device and name in _INDEXES:
            self._indexed(*args)
        if on_device is not None:
            self._keep(out, on_device)
        if name == "_pack_padded_sequence":
            self.put(out[1], False)  # the batch sizes, which RNNs read
        return out

    def _of_arguments(self, args: tuple[Any, ...]) -> tuple[bool, bool | None]:
        """Whether there is a tensor among them, and where they live: together on the device."""
        some, on_device = False, False
        unknown = False
        for arg in args:
            for tensor in arg if isinstance(arg, (list, tuple)) else (arg,):
                if not isinstance(tensor, Tensor):
                    continue
                some = True
                place = self.of(tensor)
                unknown |= place is None
                on_device |= place is True
        if on_device or not unknown:
            return some, on_device
        return some, None

    def _keep(self, out: Any, on_device: bool) -> None:
        """What an operator gave lives there; a tensor that is known to is not written down anew."""
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, Tensor) and self.of(tensor) is not on_device:
                self._known[id(tensor)] = (weakref.ref(tensor), on_device)

    def _made(self, op: str, frame: FrameType | None) -> bool | None:
        """Where a tensor made from nothing lives, by the source text of the call."""
        text = _text_of_call(frame, _SELF)
        if "device" in text and not _ON_CPU.search(text):
            if op == "lift_fresh" and not here.inside:  # torch.tensor(..., device=)
                tell(TO_DEVICE, 0.0, frame)
            return True
        # what an operator makes inside itself lives where it likes
        asked: tuple[str, ...] = _LIFTS
        if op != "lift_fresh":
            asked = (f"{op}(",)
        if any(name in text for name in asked):
            return False
        return None

    def _copied(self, dst: Tensor, src: Tensor, non_blocking: bool = False) -> None:
        target = self.of(dst)
        origin = self.of(src)
        if not non_blocking and not here.inside and {target, origin} == {True, False}:
            tell(TO_DEVICE if target else TO_HOST, 0.0, caller(2))

    def _indexed(
        self, tensor: Tensor, indices: Sequence[Tensor | None], *_: Any
    ) -> None:
        if self.of(tensor):
            for index in indices:
                if index is not None and self.of(index) is False and not here.inside:
                    tell(TO_DEVICE, 0.0, caller(2))


skip_dynamo(Places.__torch_dispatch__)


def _text_of_call(frame: FrameType | None, skip: frozenset[str]) -> str:
    near = nearest(frame, skip)
    if near is None:
        return ""
    return expression_of(near)


def _held(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def _moves_bits(op: str, tensors: Sequence[Tensor]) -> bool:
    """Whether the gradient of one of `_FORMULAS` is another below a dispatch mode."""
    if op.startswith("masked_fill"):
        tensors = tensors[2:]  # the value, if it is a tensor
    mixed = len({t.dtype for t in tensors if t.is_floating_point()}) > 1
    return any(t.requires_grad for t in tensors) and (mixed or op not in _LOSSES)


_frames_before = 0


def forget_compiled() -> None:
    """From here on, only what Dynamo compiles anew counts as compiled."""
    global _frames_before
    _frames_before = _frames()


def compiled_anything() -> bool:
    """Whether Dynamo has compiled a frame since `forget_compiled`."""
    return _frames() > _frames_before


def _frames() -> int:
    dynamo = sys.modules.get("torch._dynamo.convert_frame")
    if dynamo is None:
        return 0
    return int(dynamo.FRAME_COUNTER)


__all__ = ["Places", "compiled_anything", "forget_compiled"]
