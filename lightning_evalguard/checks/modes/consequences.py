"""Why it matters that modules are in a mode: by what of them computes something else in it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_evalguard.checks.modes.effect import drops, is_norm

# by whether dropout or the like is among them, and whether batch norm is
_EVALUATED = {
    (True, True): "Its outputs depend on chance and the batch.",
    (True, False): "Dropout makes its outputs random.",
    (False, True): "Outputs depend on the batch, statistics move.",
}
_WOKEN = {
    (True, True): "Its outputs and statistics move from now on.",
    (True, False): "Its outputs are random from now on.",
    (False, True): "Its running statistics move from now on.",
}
_ASLEEP = {
    (True, True): "It trains without dropout, its statistics stand still.",
    (True, False): "It trains without dropout.",
    (False, True): "Its running statistics stand still.",
}
_OTHERS_ASLEEP = "It trains as if it were evaluated."
OF_MODES = (*_EVALUATED.values(), *_WOKEN.values(), *_ASLEEP.values(), _OTHERS_ASLEEP)


def of_evaluating(modules: Iterable[nn.Module]) -> str:
    """Why it matters that they are in train mode while they are evaluated."""
    return _EVALUATED.get(_kinds(modules), "")


def of_waking(modules: Iterable[nn.Module]) -> str:
    """Why it matters that training goes on with them in train mode."""
    return _WOKEN.get(_kinds(modules), "")


def of_sleeping(modules: Iterable[nn.Module]) -> str:
    """Why it matters that they train in eval mode."""
    return _ASLEEP.get(_kinds(modules), _OTHERS_ASLEEP)


def _kinds(modules: Iterable[nn.Module]) -> tuple[bool, bool]:
    every = [inner for module in modules for inner in module.modules()]
    return any(map(drops, every)), any(map(is_norm, every))
