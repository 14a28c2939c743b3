"""Where the host waits for the device: the few operators that block, overridden while watched.

What blocks is decided by the operator, not by a list of Python methods. On a device the override
of an operator's kernel sees every wait, whoever asked for it, and its own time is the time the
host waited. On the CPU nothing waits, and a tensor does not say where it would live in a run on a
device: `Places` follows that from the model and the batch, one operator after the other.

Everything is put back exactly when the last `Watch` stops. Limits: kernels of other packages that
block without one of these operators (sparse, NCCL, cuSOLVER) are not seen, nor, on the CPU, what
becomes of a tensor whose origin is unknown: such a tensor is taken to live on the host.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)

from lightning_evalguard.instruments.dispatch import below, tensors_in
from lightning_evalguard.instruments.dynamo import skip_dynamo
from lightning_evalguard.instruments.source import PLUMBING, expression_of, nearest

F = TypeVar("F", bound=Callable[..., Any])
Hear = Callable[[str, FrameType | None, float], None]

SUPPORTED = hasattr(torch.library, "get_kernel")  # torch >= 2.9
KEYS = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS"}

# The operators that make the host wait on CUDA, whoever calls them: checked against the CUDA
# dispatch code of torch 2.13 and 2.14.
_BLOCKING = (
    "_local_scalar_dense",
    "nonzero",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "masked_select",
    "equal",
    "repeat_interleave.Tensor",
    "_ctc_loss",
    "_ctc_loss.Tensor",
)
# On the CPU, a number read inside another operator than these says nothing about CUDA's kernel for
# it: `multinomial`, `embedding(max_norm=)`, `_assert_async`, ...
_READS = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "allclose", "histc", "_linalg_check_errors"}
)
# Under inference mode an operator arrives whole. These read numbers of their own beside those that
# they are given: they are seen into, which moves no bit, for no matrix is multiplied there.
_SEEN_INTO = frozenset({"one_hot", "narrow", "quantile", "nanquantile"})
# These read the value they are given, if it is a tensor on the device: `x[mask] = tensor`.
_VALUES = frozenset({"masked_fill", "masked_fill_", "index_put", "index_put_", "_index_put_impl_"})
_INDEXES = frozenset({"index", "index_put", "index_put_"})
# Their gradients torch computes by other formulas below a dispatch mode, whose last bits differ: of
# a loss where precisions are mixed, of masked_fill where the value is trained.
_LOSSES = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})
_FORMULAS = _LOSSES | {"prod", "masked_fill", "masked_fill_"}
_TO_HOST, _TO_DEVICE = "copy to the host", "copy to the device"
_LIFTS = ("tensor(", "from_numpy(")
_CLASSES_GIVEN = re.compile(r"one_hot\([^()]*(\([^()]*\)[^()]*)*,")
_SELF = frozenset({"self"})
# Modules of int8 weights have kernels for the CPU alone: there they read their scales.
_INT8 = os.path.join("ao", "nn", "quantized", "")
_ON_CPU = re.compile(r"""device\s*[=(]\s*(torch\.device\()?\s*["']cpu""")


def _within_int8(frame: FrameType | None) -> bool:
    """Whether a module of int8 weights runs, seen from torch's code around `frame`."""
    for _ in range(12):  # the dispatch of one operator, and ours
        if frame is None or _INT8 in frame.f_code.co_filename:
            break
        frame = frame.f_back
    return frame is not None and _INT8 in frame.f_code.co_filename


class _Here(threading.local):
    """What this thread watches. Other threads are not policed."""

    def __init__(self) -> None:
        self.watches: list[Watch] = []
        self.inside = False  # a wait that is being counted: what it does inside is part of it
        self.places: Places | None = None


_here = _Here()
_devices_open: list[Watch] = []  # also heard from the autograd engine's threads
second_ears: list[Callable[[bool], object]] = []  # told when a wait is heard here, and its end


def _caller(depth: int = 1) -> FrameType | None:
    """Who called the caller; None on the autograd engine's threads, where nobody in Python did."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(depth):
        frame = frame.f_back if frame is not None else None
    return frame


def _heard_by() -> Sequence[Watch]:
    if _here.watches:
        return _here.watches
    if _devices_open and torch._C._current_graph_task_id() != -1:
        return _devices_open
    return ()


def _tell(op: str, seconds: float, frame: FrameType | None) -> None:
    for watch in tuple(_heard_by()):
        watch.tell(op, frame, seconds)


class Watch:
    """Hears of every wait between `open` and `close`, on this thread.

    Args:
        device_type: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        hear: Called with the operator, the Python frame it was called from (None in the backward
            pass on a device, which runs on threads of its own), and the seconds it took.

    Attributes:
        error: What `hear` raised, if it did: nothing is raised into the code that is watched.
        missed_backward: Whether a backward pass ran unseen, for it would have moved bits.
    """

    def __init__(self, device_type: str, hear: Hear) -> None:
        self.device_type = device_type
        self.error: Exception | None = None
        self.missed_backward = False
        self._hear = hear
        self._key = KEYS[device_type]
        self._is_open = False
        if self.on_cpu:
            self._lasting, self._passing = None, _operators
        else:  # many windows, and hardly a cost outside them: only copies are frequent there
            self._lasting, self._passing = _operators, _copies
            _acquire(self._lasting, self._key)

    @property
    def on_cpu(self) -> bool:
        """Whether nothing waits, and it is found out what would."""
        return self._key == "CPU"

    def tell(self, op: str, frame: FrameType | None, seconds: float) -> None:
        """A wait was seen."""
        try:
            self._hear(op, frame, seconds)
        except Exception as error:  # noqa: BLE001 - our own bug must not surface in `.item()`
            self.error = error

    def open(self, on_device: Iterable[Tensor]) -> None:
        """Listen from here on; again while open, to say what else is on the device.

        Args:
            on_device: What would live on the device in a run on one: parameters, buffers and the
                batch. Used on the CPU alone.
        """
        if not self._is_open:
            _acquire(self._passing, self._key)
            self._is_open = True
            _here.watches.append(self)
            if not self.on_cpu:
                _devices_open.append(self)
        if self.on_cpu:
            if _here.places is None:
                _here.places = Places()
                _here.places.__enter__()  # type: ignore[no-untyped-call]
            _here.places.moves_bits = False
            for tensor in on_device:
                _here.places.put(tensor, True)

    def close(self) -> None:
        """Stop listening; called on the thread that opened."""
        if not self._is_open:
            return
        self._is_open = False
        _here.watches.remove(self)
        if not self.on_cpu:
            _devices_open.remove(self)
        elif _here.places is not None and not any(w.on_cpu for w in _here.watches):
            _here.places.leave()
            _here.places = None
        _release(self._passing, self._key)

    def stop(self) -> None:
        """Put back what was replaced, unless another watch still needs it."""
        self.close()
        if self._lasting is not None:
            _release(self._lasting, self._key)
            self._lasting = None


def _after_fork() -> None:
    """A data loader's worker that is forked inside a window has nothing to watch."""
    _here.watches.clear()
    _devices_open.clear()
    if _here.places is not None:
        _here.places.leave()
        _here.places = None


def crossing(change: Callable[[], Any]) -> Any:
    """Run `change`, which enters or leaves inference mode, while nothing of ours is on the stack.

    The thread's dispatch keys are kept when it is entered and put back when it is left: a mode that
    was entered or left in between would be called without an operator to see, or not at all.
    """
    places = _here.places
    if places is None:
        return change()
    places.leave()
    try:
        return change()
    finally:
        places.__enter__()  # type: ignore[no-untyped-call]


# What is replaced, and put back


@dataclass
class _Installed:
    """Kernels and methods that are replaced for as long as somebody uses them."""

    library: Any
    methods: list[tuple[Any, str, Any, Any]] = field(default_factory=list)
    users: int = 0

    def override(self, key: str, name: str, around: Callable[..., Any]) -> None:
        if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"aten::{name}", key):
            return  # MPS has not all of them
        kernel = torch.library.get_kernel(f"aten::{name}", key).call_boxed
        replaced = skip_dynamo(around(name, kernel))
        with warnings.catch_warnings():
            # torch says once a process that a kernel is overridden: here that is meant
            warnings.filterwarnings("ignore", message="(?s).*verriding a previously registered")
            self.library.impl(name, replaced, key, with_keyset=True)

    def patch(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        original, own = getattr(owner, name), vars(owner).get(name)
        replaced = functools.wraps(original)(skip_dynamo(around(name, original)))
        setattr(owner, name, replaced)
        self.methods.append((owner, name, own, replaced))

    def remove(self) -> None:
        self.library._destroy()
        for owner, name, own, replaced in self.methods:
            if vars(owner).get(name) is not replaced:
                continue  # somebody put another in front since: ours only calls through now
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _operators(installed: _Installed, key: str) -> None:
    for name in _BLOCKING:
        installed.override(key, name, _blocking_on_cpu if key == "CPU" else _blocking)
    if key == "CPU":
        # on the CPU these reach no operator; `__getitem__` and torch's functions stay untouched
        for name in ("cpu", "tolist", "numpy", "__array__", "__repr__", "__format__"):
            installed.patch(Tensor, name, _reading_on_cpu)
        installed.patch(Tensor, "to", _moving_on_cpu)
        installed.patch(Tensor, "new_tensor", _making_on_cpu)
        installed.patch(torch.autograd, "_engine_run_backward", _differentiating_on_cpu)
        return
    for name in ("__repr__", "__format__"):  # one event, not the forty reads inside
        installed.patch(Tensor, name, _reading)
    module = getattr(torch, key.lower())
    for owner in (module, getattr(module, "Event", None), getattr(module, "Stream", None)):
        if hasattr(owner, "synchronize"):
            installed.patch(owner, "synchronize", _synchronizing)
    if hasattr(torch, "accelerator"):
        installed.patch(torch.accelerator, "synchronize", _synchronizing)


def _copies(installed: _Installed, key: str) -> None:
    installed.override(key, "copy_", _copying)


def _library() -> Any:
    return torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]


_Install = Callable[[_Installed, str], None]
_installed: dict[tuple[_Install, str], _Installed] = {}
_lock = threading.Lock()


# One override a process: two that are destroyed out of order would leave `.item()` broken.
def _acquire(install: _Install, key: str) -> None:
    with _lock:
        _once()
        known = _installed.get((install, key))
        if known is None:
            known = _Installed(_library())
            try:
                install(known, key)
            except BaseException:
                known.remove()
                raise
            _installed[install, key] = known
        known.users += 1


def _release(install: _Install, key: str) -> None:
    with _lock:
        known = _installed[install, key]
        known.users -= 1
        if not known.users:
            del _installed[install, key]
            known.remove()


@functools.cache
def _once() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


# Replacements. Each begins with the one test that everything outside a window pays for.


def _timed(
    op: str,
    waits: bool,
    frame: FrameType | None,
    call: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    _here.inside = True
    for ear in second_ears:
        ear(True)
    start = time.perf_counter()
    try:
        return call(*args, **kwargs)
    finally:
        seconds = time.perf_counter() - start
        for ear in second_ears:
            ear(False)
        _here.inside = False
        if waits:
            _tell(op, seconds, frame)


def _blocking(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    op = name.partition(".")[0]

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        if _here.inside or not _heard_by():
            return call(keys, *args, **kwargs)
        waits = kwargs.get("output_size") is None
        return _timed(op, waits, _caller(), call, keys, *args, **kwargs)

    return kernel


def _blocking_on_cpu(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    op = name.partition(".")[0]

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        places = _here.places
        if places is None or _here.inside:
            return call(keys, *args, **kwargs)
        frame = _caller()
        waits = kwargs.get("output_size") is None and places.waits(op, args, frame)
        return _timed(op, waits, frame, call, keys, *args, **kwargs)

    return kernel


def _copying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(keys: Any, dst: Tensor, src: Any, non_blocking: bool = False) -> Any:
        if not isinstance(src, Tensor):  # a wrapped number arrives as a Python scalar
            return dst.fill_(src)
        if non_blocking or dst.device.type == src.device.type or _here.inside or not _heard_by():
            return call(keys, dst, src, non_blocking)
        op = _TO_HOST if dst.device.type == "cpu" else _TO_DEVICE
        return _timed(op, True, _caller(), call, keys, dst, src, non_blocking)

    return kernel


def _reading(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or _here.inside or not _heard_by():
            return original(tensor, *args, **kwargs)
        waits = tensor.device.type in ("cuda", "mps")
        return _timed(name, waits, _caller(), original, tensor, *args, **kwargs)

    return method


def _reading_on_cpu(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or _here.places is None or _here.inside:
            return original(tensor, *args, **kwargs)
        places = _here.places
        waits = places.on_device(tensor)
        out = _timed(name, waits, _caller(), original, tensor, *args, **kwargs)
        return places.moved(tensor, out, False) if name == "cpu" else out

    return method


def _moving_on_cpu(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or _here.places is None or _here.inside:
            return original(tensor, *args, **kwargs)
        places, frame = _here.places, _caller()
        before = places.on_device(tensor)
        out = original(tensor, *args, **kwargs)
        after = places.destination(frame, *args, **kwargs)
        if after is not None and isinstance(out, Tensor):
            blocks = not kwargs.get("non_blocking")
            if blocks and before and not after:
                _tell(_TO_HOST, 0.0, frame)
            elif blocks and after and places.of(tensor) is False:
                _tell(_TO_DEVICE, 0.0, frame)
            return places.moved(tensor, out, after)
        return out

    return to


def _making_on_cpu(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or _here.places is None or _here.inside:
            return original(tensor, *args, **kwargs)
        places, frame = _here.places, _caller()
        waits = bool(places.of(tensor)) and "device" not in kwargs
        out = _timed(_TO_DEVICE, waits, frame, original, tensor, *args, **kwargs)
        if waits:
            places.put(out, True)
        return out

    return method


def _differentiating_on_cpu(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        places = _here.places
        if places is None or not places.moves_bits:
            return original(*args, **kwargs)
        for watch in _here.watches:
            watch.missed_backward = True
        places.leave()
        try:
            return original(*args, **kwargs)
        finally:
            places.return_after_backward()

    return run


def _synchronizing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def synchronize(*args: Any, **kwargs: Any) -> Any:
        if _here.inside or not _heard_by():
            return original(*args, **kwargs)
        return _timed(name, True, _caller(), original, *args, **kwargs)

    return synchronize


# The CPU: what would live on the device


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
        self._running: Any = None
        self._previous = ""  # the operator that ran before
        self._args: tuple[Any, ...] = ()  # of the operator that runs
        self.moves_bits = False  # the backward pass of what ran would be computed otherwise here

    def put(self, tensor: Tensor, on_device: bool) -> None:
        """Say where a tensor lives."""
        # a parameter is held: `torch.utils.swap_tensors` refuses one that has weak references
        refer = _held(tensor) if isinstance(tensor, torch.nn.Parameter) else weakref.ref(tensor)
        self._known[id(tensor)] = (refer, on_device)

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
        return known[1] if known is not None and known[0]() is tensor else None

    def on_device(self, tensor: Tensor) -> bool:
        """Whether reading a tensor would make the host wait."""
        known = self.of(tensor)
        # what a compiled function returns was made by no operator
        return _compiled_anything() if known is None else known

    def waits(self, op: str, args: tuple[Any, ...], frame: FrameType | None) -> bool:
        """Whether the host would wait for a blocking operator on these arguments."""
        known = {self.of(a) for a in args if isinstance(a, Tensor)}
        if op == "_local_scalar_dense":
            if True in known and _within_int8(frame):
                return False
            within = getattr(self._running, "_opname", None)
            if within is not None and within not in _READS:
                return within in _VALUES and True in known
            text = _text_of_call(frame, PLUMBING) if True in known else ""
            if "one_hot(" in text:  # on the CPU alone it looks whether the labels are in range
                largest = self._previous in ("max", "aminmax")
                return largest and not _CLASSES_GIVEN.search(text)
        if True in known or None not in known:
            return True in known
        # made inside the operator that runs, or by a compiled function
        inputs = tensors_in(self._args)
        return any(self.of(tensor) for tensor in inputs) or _compiled_anything()

    def destination(self, frame: FrameType | None, *args: Any, **kwargs: Any) -> bool | None:
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
        outer = self._running, self._args
        self._running, self._args = func, args
        try:
            out = below(func, args, kwargs or {})
        finally:
            self._running, self._args = outer
        known = self._known
        on_device: bool | None = False
        none = True
        for arg in args:
            for tensor in arg if isinstance(arg, (list, tuple)) else (arg,):
                if isinstance(tensor, Tensor):
                    none = False
                    place = known.get(id(tensor))
                    if place is None or place[0]() is not tensor:
                        on_device = on_device or None
                    elif place[1]:
                        on_device = True
        name = self._previous = getattr(func, "_opname", "")
        inputs = tensors_in([*args, *(kwargs or {}).values()])
        if name in _FORMULAS and _moves_bits(name, list(inputs)):
            self.moves_bits = True
        if none or name == "lift_fresh":
            on_device = self._made(name, _caller())
        elif name == "copy_":
            self._copied(*args)
            return out  # `args[0]` stays where it is
        elif on_device and name in _INDEXES:
            self._indexed(*args)
        if on_device is not None:
            for tensor in out if isinstance(out, (list, tuple)) else (out,):
                if isinstance(tensor, Tensor):
                    place = known.get(id(tensor))
                    if place is None or place[1] != on_device or place[0]() is not tensor:
                        known[id(tensor)] = (weakref.ref(tensor), on_device)
        if name == "_pack_padded_sequence":
            self.put(out[1], False)  # the batch sizes, which RNNs read
        return out

    def _made(self, op: str, frame: FrameType | None) -> bool | None:
        """Where a tensor made from nothing lives, by the source text of the call."""
        text = _text_of_call(frame, _SELF)
        if "device" in text and not _ON_CPU.search(text):
            if op == "lift_fresh" and not _here.inside:  # torch.tensor(..., device=)
                _tell(_TO_DEVICE, 0.0, frame)
            return True
        # what an operator makes inside itself lives where it likes
        asked = _LIFTS if op == "lift_fresh" else (f"{op}(",)
        return False if any(name in text for name in asked) else None

    def _copied(self, dst: Tensor, src: Tensor, non_blocking: bool = False) -> None:
        there, here = self.of(dst), self.of(src)
        if not non_blocking and not _here.inside and {there, here} == {True, False}:
            _tell(_TO_DEVICE if there else _TO_HOST, 0.0, _caller(2))

    def _indexed(self, tensor: Tensor, indices: Sequence[Tensor | None], *_: Any) -> None:
        if self.of(tensor):
            for index in indices:
                if index is not None and self.of(index) is False and not _here.inside:
                    _tell(_TO_DEVICE, 0.0, _caller(2))


skip_dynamo(Places.__torch_dispatch__)


def _text_of_call(frame: FrameType | None, skip: frozenset[str]) -> str:
    near = nearest(frame, skip)
    return expression_of(near) if near is not None else ""


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


def _compiled_anything() -> bool:
    return _frames() > _frames_before


def _frames() -> int:
    dynamo = sys.modules.get("torch._dynamo.convert_frame")
    return dynamo.FRAME_COUNTER if dynamo is not None else 0
