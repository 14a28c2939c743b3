"""Judges what is found in a script as a whole, with one policy a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.registry import RULES
from lightning_evalguard.guard import Guard
from lightning_evalguard.instruments.dispatch import aside, is_watched, unseen
from lightning_evalguard.plain.models import Models
from lightning_evalguard.report import Finding, hidden

__tracebackhide__ = hidden


class Judge(Guard):
    """The guard of the script as a whole: its own findings, and the syncs of each step."""

    def tell(self, findings: Sequence[tuple[Finding, str]]) -> None:
        """Report what is found, unless it is meant; raise where the policy says so."""
        self._judge([(f, p) for f, p in findings if f not in self.allowed], quiet=False)

    def follow(self, name: str, act: Callable[[], Iterable[Finding]]) -> None:
        """Judge what a check of single models finds; one that fails is switched off.

        Args:
            name: The check.
            act: Gives its findings.
        """
        pair = next((pair for pair in self.checks if pair[0].name == name), None)
        if pair is None:
            return
        try:
            with aside, unseen() if is_watched() else nullcontext():
                findings = self._kept(pair, act())
        except Exception as error:  # noqa: BLE001 - our own bug must not stop a script
            self.failed(pair, error)
            return
        if findings:
            self._judge(findings, quiet=False)

    def step(self, now: Moment, args: tuple[Any, ...]) -> None:  # type: ignore[override]
        """A step begins: the wait for the device is looked for in it."""
        event = "before_step"
        if now.stage == "fit":
            event = "before_train_step"
        if findings := self.call(event, now, args):
            self._judge(findings, quiet=False)

    def leave(self, now: Moment) -> None:
        """A loop is over."""
        self._all("start", lambda check: check.start(now))


class Together(nn.Module):
    """Stands for all models of a script, which it does not hold."""

    def __init__(self, models: Models) -> None:
        super().__init__()
        vars(self)["_models"] = models

    def modules(self, remove_duplicate: bool = True) -> Any:
        """Theirs, and this."""
        yield self
        for model in vars(self)["_models"].living():
            yield from model.modules()

    def parameters(self, recurse: bool = True) -> Any:
        """Those of all."""
        for model in vars(self)["_models"].living():
            yield from model.parameters(recurse)

    def buffers(self, recurse: bool = True) -> Any:
        """Those of all."""
        for model in vars(self)["_models"].living():
            yield from model.buffers(recurse)


def policies_of(policy: str, given: dict[str, str]) -> dict[str, str]:
    """The policy of each check: `policy` where a bare guard stops the run, as `given` else."""
    policies = {}
    for name, rule in RULES.items():
        policies[name] = rule.default
        if rule.default == "error":
            policies[name] = policy
    return policies | given
