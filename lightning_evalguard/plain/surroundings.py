"""What stands around the windows of a session: whom they ask, and whom they tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_evalguard.plain.chain import Chain
from lightning_evalguard.plain.models import Models
from lightning_evalguard.plain.names import Names
from lightning_evalguard.plain.syncs import PlainSync
from lightning_evalguard.plain.training import TrainingSteps
from lightning_evalguard.plain.window import Loop
from lightning_evalguard.report import Finding, Report


@dataclass
class Surroundings:
    """What the windows of a session ask, and tell.

    Attributes:
        report: What is verified and found.
        policies: Of every check.
        allow: Patterns of what is meant.
        models: The root modules of the script.
        training: Its training so far.
        names: Of its evaluations.
        sync: Hears of waits for the device.
        chain: Follows the models from their first step to their last score.
        tell: Takes what is found, each with its policy.
        innermost: Gives the running loop.
        runs: Whether a loop still runs.
        is_inside: Whether a model runs.
        is_elsewhere: Whether this is another thread or process.
        safely: Runs what may fail.
    """

    report: Report
    policies: dict[str, str]
    allow: Any
    models: Models
    training: TrainingSteps
    names: Names
    sync: PlainSync
    chain: Chain
    tell: Callable[[list[tuple[Finding, str]]], None]
    innermost: Callable[[], Loop | None]
    runs: Callable[[Loop], bool]
    is_inside: Callable[[], bool]
    is_elsewhere: Callable[[], bool]
    safely: Callable[..., Any]
