"""Torch's settings of the whole process: one list, for whoever compares them or puts them back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lightning_evalguard.instruments.generators import Generators

Get = Callable[[], Any]
Put = Callable[[Any], Any]


def _attribute(owner: Any, name: str) -> tuple[Get, Put]:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


def _default_device() -> torch.device:
    try:
        return torch.get_default_device()
    except AttributeError:  # torch 2.4, once the user's code took a default device away
        return torch.device("cpu")


def _put_default_device(device: torch.device) -> None:
    # "cpu" would install a mode where there was none
    torch.set_default_device(None if device.type == "cpu" else device)
    try:
        torch.get_default_device()
    except AttributeError:
        # torch 2.4 cannot read what was taken away: Lightning asks in each module's `__init__`.
        del torch._GLOBAL_DEVICE_CONTEXT.device_context


def _put_deterministic(value: bool) -> None:
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(value, warn_only=warn_only)


def _put_warn_only(value: bool) -> None:
    enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled, warn_only=value)


def _put_anomaly(value: bool) -> None:
    torch.autograd.set_detect_anomaly(value, torch.is_anomaly_check_nan_enabled())


def _put_check_nan(value: bool) -> None:
    torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled(), value)


def _autocast(device: str) -> dict[str, tuple[Get, Put]]:
    return {
        f"torch.is_autocast_enabled({device!r})": (
            lambda: torch.is_autocast_enabled(device),
            lambda value: torch.set_autocast_enabled(device, value),
        ),
        f"torch.get_autocast_dtype({device!r})": (
            lambda: torch.get_autocast_dtype(device),
            lambda value: torch.set_autocast_dtype(device, value),
        ),
    }


_CUDA: Any = torch.backends.cuda

# How each setting is written, how it is read, and how it is put back.
SETTINGS: dict[str, tuple[Get, Put]] = {
    "torch.get_default_dtype()": (torch.get_default_dtype, torch.set_default_dtype),
    "torch.get_default_device()": (_default_device, _put_default_device),
    "torch.get_float32_matmul_precision()": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "torch.are_deterministic_algorithms_enabled()": (
        torch.are_deterministic_algorithms_enabled,
        _put_deterministic,
    ),
    "torch.is_deterministic_algorithms_warn_only_enabled()": (
        torch.is_deterministic_algorithms_warn_only_enabled,
        _put_warn_only,
    ),
    "torch.utils.deterministic.fill_uninitialized_memory": _attribute(
        torch.utils.deterministic, "fill_uninitialized_memory"
    ),
    "torch.is_anomaly_enabled()": (torch.is_anomaly_enabled, _put_anomaly),
    "torch.is_anomaly_check_nan_enabled()": (
        torch.is_anomaly_check_nan_enabled,
        _put_check_nan,
    ),
    **_autocast("cpu"),
    **_autocast("cuda"),
    "torch.get_num_threads()": (torch.get_num_threads, torch.set_num_threads),
    "torch.backends.cudnn.enabled": _attribute(torch.backends.cudnn, "enabled"),
    "torch.backends.cudnn.benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "torch.backends.cudnn.deterministic": _attribute(
        torch.backends.cudnn, "deterministic"
    ),
    "torch.backends.cudnn.allow_tf32": _attribute(torch.backends.cudnn, "allow_tf32"),
    "torch.backends.cuda.flash_sdp_enabled()": (
        _CUDA.flash_sdp_enabled,
        _CUDA.enable_flash_sdp,
    ),
    "torch.backends.cuda.mem_efficient_sdp_enabled()": (
        _CUDA.mem_efficient_sdp_enabled,
        _CUDA.enable_mem_efficient_sdp,
    ),
    "torch.backends.cuda.math_sdp_enabled()": (
        _CUDA.math_sdp_enabled,
        _CUDA.enable_math_sdp,
    ),
    "torch.backends.mha.get_fastpath_enabled()": (
        torch.backends.mha.get_fastpath_enabled,
        torch.backends.mha.set_fastpath_enabled,
    ),
}


def settings() -> dict[str, Any]:
    """The value of each setting, by how it is written."""
    values = {}
    for name, (get, _) in SETTINGS.items():
        # The matmul precision raises where the newer `fp32_precision` was set (torch >= 2.9).
        with contextlib.suppress(RuntimeError):
            values[name] = get()
    return values


def put_back(before: Mapping[str, Any]) -> None:
    """Give each setting the value that `settings` read before, where it has another now."""
    now = settings()
    for name, value in before.items():
        # One that can no longer be read was put in conflict with another.
        if name not in now or now[name] != value:
            SETTINGS[name][1](value)


@contextlib.contextmanager
def unchanged_world() -> Iterator[None]:
    """Put back the shared generators, torch's settings and the environment after the block."""
    generators = Generators.capture()
    grad = torch.is_grad_enabled()
    before = settings()
    environment = dict(os.environ)
    try:
        yield
    finally:
        generators.restore()
        torch.set_grad_enabled(grad)
        put_back(before)
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)


__all__ = ["SETTINGS", "put_back", "settings", "unchanged_world"]
