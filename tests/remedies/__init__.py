"""Programs that get a remedy, each written a second time as the remedy says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from lightning_evalguard import EvalGuard, EvalGuardError, EvalGuardWarning, Report

Make = Callable[..., pl.Trainer]
Applied = Callable[[Make, bool], Report]
APPLIED: dict[str, list[Applied]] = {}
ALL = ("modes", "grad", "state", "stochastic", "batch", "data", "sync", "weights", "scores")
CHECKS = (*ALL, "selection")


def applied(*templates: str) -> Callable[[Applied], Applied]:
    """The case of a template: called with ``fixed=False`` it gets it, with True it is silent."""

    def add(case: Applied) -> Applied:
        for template in templates:
            APPLIED.setdefault(template, []).append(case)
        return case

    return add


def alone(*checks: str, **settings: Any) -> EvalGuard:
    """A guard of some checks."""
    off: dict[str, Any] = {name: "ignore" for name in CHECKS if name not in checks}
    return EvalGuard(**({"metrics": None} | off | settings))


def heard(guard: EvalGuard, act: Callable[[], Any]) -> Report:
    """What a guard reports of a run, stopped or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        try:
            act()
        except EvalGuardError as error:
            return error.report
    return guard.report


def fitted(make: Make, guard: EvalGuard, module: pl.LightningModule, **kwargs: Any) -> Report:
    """What a guard reports of a fit."""
    callbacks = [*kwargs.pop("callbacks", ()), guard]
    return heard(guard, lambda: make(callbacks=callbacks, **kwargs).fit(module))
