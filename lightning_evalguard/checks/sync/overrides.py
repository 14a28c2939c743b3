"""Where the host waits for the device: the few operators that block, overridden while watched.

What blocks is decided by the operator, not by a list of Python methods. On a device the override
of an operator's kernel sees every wait, whoever asked for it, and its own time is the time the
host waited. On the CPU nothing waits, and a tensor does not say where it would live in a run on a
device: `Places` follows that from the model and the batch, one operator after the other.

Everything is put back exactly when the last `WaitWatch` stops. Limits: kernels of other packages
that block without one of these operators (sparse, NCCL, cuSOLVER) are not seen, nor, on the CPU,
what becomes of a tensor whose origin is unknown: such a tensor is taken to live on the host.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.checks.sync.host_or_device import Places
from lightning_evalguard.checks.sync.listeners import (
    TO_DEVICE,
    TO_HOST,
    caller,
    devices_open,
    heard_by,
    here,
    second_ears,
    tell,
)
from lightning_evalguard.instruments.dynamo import skip_dynamo
from lightning_evalguard.instruments.patch import Layer
from lightning_evalguard.instruments.tracebacks import cut

Hear = Callable[[str, FrameType | None, float], None]

SUPPORTED = hasattr(torch.library, "get_kernel")  # torch >= 2.9
KEYS = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS"}

# A wrapped number, as a graph saves one, arrives in a kernel as a Python scalar: it is its value.
_READS = "_local_scalar_dense"
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


class WaitWatch:
    """Hears of every wait between `open` and `close`, on this thread.

    Args:
        device_type: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        hear: Called with the operator, the Python frame it was called from (None in the backward
            pass on a device, which runs on threads of its own), and the seconds it took.

    Attributes:
        error: What `hear` raised, if it did: nothing is raised into the code that is watched.
        missed_backward: Whether a backward pass ran unseen, for it would have moved bits.
        operators: On the CPU, how many it has looked at so far.
    """

    def __init__(self, device_type: str, hear: Hear) -> None:
        self.device_type = device_type
        self.error: Exception | None = None
        self.missed_backward = False
        self.operators = 0
        self._hear = hear
        self._key = KEYS[device_type]
        self._is_open = False
        if self.on_cpu:
            self._lasting = None
            self._passing = _operators
        else:
            # many windows, and hardly a cost outside them: only copies are frequent there
            self._lasting = _operators
            self._passing = _copies
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
            here.watches.append(self)
            if not self.on_cpu:
                devices_open.append(self)
        if self.on_cpu:
            if here.places is None:
                here.places = Places()
                here.places.__enter__()
            here.places.moves_bits = False
            for tensor in on_device:
                here.places.put(tensor, True)

    def close(self) -> None:
        """Stop listening; called on the thread that opened."""
        if not self._is_open:
            return
        self._is_open = False
        here.watches.remove(self)
        if not self.on_cpu:
            devices_open.remove(self)
        elif here.places is not None and not any(w.on_cpu for w in here.watches):
            self.operators += here.places.operators
            here.places.leave()
            here.places = None
        _release(self._passing, self._key)

    def stop(self) -> None:
        """Put back what was replaced, unless another watch still needs it."""
        self.close()
        if self._lasting is not None:
            _release(self._lasting, self._key)
            self._lasting = None


def _after_fork() -> None:
    """A data loader's worker that is forked inside a window has nothing to watch."""
    here.watches.clear()
    devices_open.clear()
    if here.places is not None:
        here.places.leave()
        here.places = None


def crossing(change: Callable[[], Any]) -> Any:
    """Run `change`, which enters or leaves inference mode, while nothing of ours is on the stack.

    The thread's dispatch keys are kept when it is entered and put back when it is left: a mode that
    was entered or left in between would be called without an operator to see, or not at all.
    """
    places = here.places
    if places is None:
        return change()
    places.leave()
    try:
        return change()
    finally:
        places.__enter__()


# What is replaced, and put back


@dataclass
class _Installed:
    """Kernels and methods that are replaced for as long as somebody uses them."""

    library: Any
    methods: list[Layer] = field(default_factory=list)
    users: int = 0

    def override(self, key: str, name: str, around: Callable[..., Any]) -> None:
        if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(
            f"aten::{name}", key
        ):
            return  # MPS has not all of them
        kernel = torch.library.get_kernel(f"aten::{name}", key).call_boxed
        replaced = skip_dynamo(around(name, kernel))
        with warnings.catch_warnings():
            # torch says once a process that a kernel is overridden: here that is meant
            warnings.filterwarnings(
                "ignore", message="(?s).*verriding a previously registered"
            )
            self.library.impl(name, replaced, key, with_keyset=True)

    def patch(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        replaced = functools.wraps(original)(skip_dynamo(around(name, original)))
        self.methods.append(Layer(owner, name, replaced))

    def remove(self) -> None:
        self.library._destroy()
        # one that lies under another's only calls through now
        for method in self.methods:
            method.remove()


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
        installed.patch(torch.utils, "swap_tensors", _swapping_on_cpu)
        return
    for name in ("__repr__", "__format__"):  # one event, not the forty reads inside
        installed.patch(Tensor, name, _reading)
    module = getattr(torch, key.lower())
    for owner in (
        module,
        getattr(module, "Event", None),
        getattr(module, "Stream", None),
    ):
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
    here.inside = True
    for ear in second_ears:
        ear(True)
    start = time.perf_counter()
    try:
        return call(*args, **kwargs)
    finally:
        seconds = time.perf_counter() - start
        for ear in second_ears:
            ear(False)
        here.inside = False
        if waits:
            tell(op, seconds, frame)


def _blocking(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    op = name.partition(".")[0]

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        if op == _READS and not isinstance(args[0], Tensor):
            return args[0]
        if here.inside or not heard_by():
            return call(keys, *args, **kwargs)
        waits = kwargs.get("output_size") is None
        return _timed(op, waits, caller(), call, keys, *args, **kwargs)

    return kernel


def _blocking_on_cpu(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    op = name.partition(".")[0]

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        if op == _READS and not isinstance(args[0], Tensor):
            return args[0]
        places = here.places
        if places is None or here.inside:
            return call(keys, *args, **kwargs)
        frame = caller()
        waits = kwargs.get("output_size") is None and places.waits(op, args, frame)
        return _timed(op, waits, frame, call, keys, *args, **kwargs)

    return kernel


def _copying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(keys: Any, dst: Tensor, src: Any, non_blocking: bool = False) -> Any:
        if not isinstance(src, Tensor):  # a wrapped number arrives as a Python scalar
            return dst.fill_(src)
        if (
            non_blocking
            or dst.device.type == src.device.type
            or here.inside
            or not heard_by()
        ):
            return call(keys, dst, src, non_blocking)
        op = TO_DEVICE
        if dst.device.type == "cpu":
            op = TO_HOST
        return _timed(op, True, caller(), call, keys, dst, src, non_blocking)

    return kernel


def _reading(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or here.inside or not heard_by():
            return original(tensor, *args, **kwargs)
        waits = tensor.device.type in ("cuda", "mps")
        return _timed(name, waits, caller(), original, tensor, *args, **kwargs)

    return method


def _reading_on_cpu(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or here.places is None or here.inside:
            return original(tensor, *args, **kwargs)
        places = here.places
        waits = places.on_device(tensor)
        try:
            out = _timed(name, waits, caller(), original, tensor, *args, **kwargs)
        except BaseException as error:
            cut(error)
            raise
        if name == "cpu":
            return places.moved(tensor, out, False)
        return out

    return method


def _moving_on_cpu(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or here.places is None or here.inside:
            return original(tensor, *args, **kwargs)
        places = here.places
        frame = caller()
        before = places.on_device(tensor)
        try:
            out = original(tensor, *args, **kwargs)
        except BaseException as error:
            cut(error)
            raise
        after = places.destination(frame, *args, **kwargs)
        if after is not None and isinstance(out, Tensor):
            blocks = not kwargs.get("non_blocking")
            if blocks and before and not after:
                tell(TO_HOST, 0.0, frame)
            elif blocks and after and places.of(tensor) is False:
                tell(TO_DEVICE, 0.0, frame)
            return places.moved(tensor, out, after)
        return out

    return to


def _making_on_cpu(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or here.places is None or here.inside:
            return original(tensor, *args, **kwargs)
        places = here.places
        frame = caller()
        waits = bool(places.of(tensor)) and "device" not in kwargs
        out = _timed(TO_DEVICE, waits, frame, original, tensor, *args, **kwargs)
        if waits:
            places.put(out, True)
        return out

    return method


def _differentiating_on_cpu(
    name: str, original: Callable[..., Any]
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        places = here.places
        if places is not None and not places.moves_bits:
            places = None
        if places is not None:
            for watch in here.watches:
                watch.missed_backward = True
            places.leave()
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            cut(error)
            raise
        finally:
            if places is not None:
                places.return_after_backward()

    return run


def _swapping_on_cpu(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """``module.to()`` may swap tensors, which torch refuses where one has a weak reference."""

    def swap_tensors(one: Tensor, other: Tensor) -> None:
        places = here.places
        if places is None:
            original(one, other)
            return
        before = places.forget(one), places.forget(other)
        try:
            original(one, other)
        finally:
            for tensor, on_device in zip((other, one), before, strict=True):
                if on_device is not None:
                    places.put(tensor, on_device)

    return swap_tensors


def _synchronizing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def synchronize(*args: Any, **kwargs: Any) -> Any:
        if here.inside or not heard_by():
            return original(*args, **kwargs)
        return _timed(name, True, caller(), original, *args, **kwargs)

    return synchronize


__all__ = ["KEYS", "SUPPORTED", "WaitWatch", "crossing"]
