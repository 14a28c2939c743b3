"""Is every submodule in eval mode while it is evaluated, and in its train mode while it trains?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_evalguard.allow import CONSEQUENCES
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.modes import consequences
from lightning_evalguard.checks.modes.callers import (
    ModeCall,
    Override,
    calls,
    override_of,
    who,
)
from lightning_evalguard.checks.modes.effect import (
    effect_of,
    is_dropout,
    read_by_others,
)
from lightning_evalguard.checks.modes.plans import Repair, plan_modes
from lightning_evalguard.checks.modes.training import TrainingModes
from lightning_evalguard.checks.modes.window import ModesWindow, Unrestored
from lightning_evalguard.checks.modes.words import (
    mode_finding,
    with_others,
    with_siblings,
    word,
)
from lightning_evalguard.model.tensors import is_metric
from lightning_evalguard.model.tree import Modes, collapse, registrations
from lightning_evalguard.report import Finding
from lightning_evalguard.stages import spelling

_AROUND = 'allow("modes", reason=...)'


class ModesCheck(Check):
    """The `modes` check: flags around every step, restoration after every evaluation.

    A flag is a finding where it has an effect: on what an evaluation computes, or on weights and
    statistics that training moves. Without one it is a note.

    Args:
        expected: Modes that a training plan declares, as (pattern, train mode) pairs; read anew
            at each look, so that the plan may change while it runs.
        optimizers: Gives the optimizers of the run.
        callbacks: Gives the other callbacks of the run, which may set modes before it is seen.
    """

    name = "modes"
    thins = True

    def __init__(
        self,
        expected: Sequence[tuple[str, bool]] = (),
        optimizers: Callable[[], Iterable[Any]] = tuple,
        callbacks: Callable[[], Iterable[object]] = tuple,
    ) -> None:
        self._expected = expected
        self._optimizers = optimizers
        self._callbacks = callbacks
        self._modes: Modes | None = None
        self._windows: list[ModesWindow] = []
        self._unrestored: Unrestored | None = None
        self._woken: list[tuple[nn.Module, ModeCall]] = []
        self._repairs: dict[tuple[str | None, str], list[tuple[nn.Module, bool]]] = {}
        self._first: dict[tuple[Any, ...], Finding] = {}
        self._awake: dict[str, tuple[Finding, nn.Module]] = {}
        self.notes: list[str] = []

    # a run

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        registrations.start()
        calls.start(self._woken)
        self._modes = Modes(root)
        self._windows = []
        self._unrestored = None
        self._first.clear()
        plans = plan_modes(self._callbacks())
        self._training = TrainingModes(
            self._modes, self._expected, self._optimizers, plans
        )
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        if self._modes is None:
            return ()
        try:
            return self._verify_restored(now) + self._offer(
                self._training.after_backward()
            )
        finally:  # whatever fails, nothing stays wrapped
            self._modes = None
            calls.stop(self._woken)
            registrations.stop()
            self._training.close()

    @property
    def modules(self) -> int:
        """How many modules are watched."""
        if self._modes is None:
            return 0
        return len(self._modes.modules)

    # an evaluation

    def start(self, now: Moment) -> Iterable[Finding]:
        modes = self._tree()
        findings = self._verify_restored(now) + self._offer(
            self._training.after_backward()
        )
        modes.refresh(force=True)
        self._windows.append(ModesWindow(now.stage, modes))
        self._awake.clear()
        return findings

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        findings = self._in_train_mode(now) if self._tree().any_training() else ()
        self._woken.clear()
        return findings

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        findings = self._in_train_mode(now) if self._tree().any_training() else []
        if self._woken:
            findings += self._put_back_before_the_end(
                now, {f.subject for f in findings}
            )
        return findings

    def explains(self, other: Finding) -> Finding | None:
        """The module in train mode from which a finding of another check follows."""
        if other.check not in CONSEQUENCES or other.subject is None:
            return None
        if other.check != "state":
            awake = self._awake.get(other.subject)
            if awake is None:
                return None
            return awake[0]
        owner, _, leaf = other.subject.rpartition(".")
        awake = self._awake.get(owner)
        if awake is not None and leaf in awake[1]._buffers:
            return awake[0]
        return None

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        if not self._windows:
            return ()
        window = self._windows.pop()
        self._training.due = True
        if error is not None:
            window.restore()
            return ()
        wrong = window.wrong(self._tree(), self._expected)
        undone = window.undone(self._tree()) if now.fitting else {}
        self._unrestored = Unrestored(window.stage, wrong, undone)
        # In a fit, who restores modes by hand may do so until the next training step.
        if now.fitting:
            return ()
        return self._verify_restored(now)

    # training

    def before_train_step(
        self, now: Moment, args: tuple[Any, ...]
    ) -> Iterable[Finding]:
        if self._unrestored is None and not self._training.waits:
            return ()
        findings = self._verify_restored(now) if self._unrestored is not None else []
        repairs = self._training.before_step()
        if repairs:
            return findings + self._offer(repairs)
        return findings

    def before_backward(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        repairs = self._training.after_step(now, outputs)
        if not repairs:
            return ()
        return self._offer(repairs)

    def fix(self, findings: Sequence[Finding]) -> Iterable[Finding]:
        """Set the flags that `findings` name; never calls `train()` or `eval()`.

        Returns:
            Those that may be meant: a plan is left alone.
        """
        left_alone = []
        for found in findings:
            flags = self._repairs.get((found.subject, found.fact), [])
            for module, flag in flags:
                module.training = flag
            self._training.accept(module for module, _ in flags)
            if not flags:
                left_alone.append(found)
        self._repairs.clear()
        return left_alone

    # how findings are made

    def _tree(self) -> Modes:
        assert self._modes is not None, "open() comes first"
        return self._modes

    def _offer(self, repairs: Iterable[Repair]) -> list[Finding]:
        """The findings, whose repair is kept for `fix`."""
        findings = []
        for found, flags in repairs:
            self._repairs[(found.subject, found.fact)] = flags
            findings.append(found)
        return findings

    def _once(self, found: Finding) -> Finding:
        """The same finding in each stage and epoch, however often it is seen."""
        return self._first.setdefault(
            (found.subject, found.fact, found.location), found
        )

    def _with_effect(self, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Those of `modules` whose mode changes what the model computes."""
        others: set[int] | None = None
        affected = {}
        for name, module in modules.items():
            if effect_of(module) is None:
                if others is None:
                    tree = self._tree()
                    others = read_by_others(
                        dict(zip(tree.names, tree.modules, strict=True))
                    )
                if id(module) not in others:
                    continue
            affected[name] = module
        return affected

    def _note(self, name: str, module: nn.Module, when: str) -> None:
        what = "the model itself"
        if name:
            what = f"`{name}` ({type(module).__name__})"
        sentence = f"modes: {what} {when}; nothing that it computes depends on its mode"
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _in_train_mode(self, now: Moment) -> list[Finding]:
        modes = self._tree()
        modes.refresh(force=True)
        window = None
        if self._windows:
            window = self._windows[-1]
        awake: dict[str, nn.Module] = {}
        for name, module in zip(modes.names, modes.modules, strict=True):
            if not module.training or is_metric(module):
                continue
            call = calls.last(module)
            if call is None or not (call.mode and call.allowed):
                awake[name] = module
        affected = self._with_effect(awake)
        groups = collapse(awake)
        causes: dict[str, list[str]] = {}
        for top, names in groups.items():
            if affected.keys() & set(names):
                causes.setdefault(_cause_of(top, awake[top]), []).append(top)
            elif window is None or window.knows(awake[top]):
                self._note(top, awake[top], "was in train mode in an evaluation")
        repairs = []
        for tops in causes.values():
            names = [name for top in tops for name in groups[top]]
            found = self._found_awake(now, tops, awake, len(names))
            self._awake |= {n: (found, awake[n]) for n in names if n in affected}
            repairs.append((found, [(awake[n], False) for n in names]))
        return self._offer(repairs)

    def _found_awake(
        self,
        now: Moment,
        tops: Sequence[str],
        awake: Mapping[str, nn.Module],
        every: int,
    ) -> Finding:
        top, *siblings = tops
        module = awake[top]
        others = every - len(tops)
        site, why = who(module, True)
        if site is None and not why:
            hook = f"on_{spelling(now.stage).hooks}_model_eval"
            why = override_of(type(self._tree().root), hook)
        fact = f"is in train mode{with_others(others)}{with_siblings(siblings)}, expected eval mode"
        remedy = 'Call `.eval()` on it, or pass modes="fix".'
        if isinstance(why, Override):
            site = why.site
            fact += f": `{why.name}` is overridden and leaves it so"
            remedy = f"Call `super().{why.method}(...)` in `{why.name}`."
        elif (
            now.stage == "predict"
            and site
            and all(is_dropout(awake[name]) for name in tops)
        ):
            remedy = f"Remove `{why}`, or write `with {_AROUND}` around the draws."
        elif why:
            remedy = f"Remove `{why}`."
        reason = consequences.of_evaluating(awake[name] for name in tops)
        made = mode_finding(
            now, top, module, fact, remedy, site, siblings=siblings, why=reason
        )
        return self._once(made)

    def _put_back_before_the_end(
        self, now: Moment, reported: set[str | None]
    ) -> list[Finding]:
        names = {
            id(m): n
            for n, m in zip(self._tree().names, self._tree().modules, strict=True)
        }
        woken: dict[str, tuple[nn.Module, ModeCall]] = {}
        for module, call in self._woken:
            name = names.get(id(module))
            if name is not None and not (
                module.training or call.allowed or is_metric(module)
            ):
                woken.setdefault(name, (module, call))
        self._woken.clear()
        affected = self._with_effect(
            {name: module for name, (module, _) in woken.items()}
        )
        groups = collapse(woken)
        causes: dict[Any, list[str]] = {}
        for top, group in groups.items():
            if top not in reported and affected.keys() & set(group):
                site = woken[top][1].site
                causes.setdefault(site.location if site else top, []).append(top)
        findings = []
        for tops in causes.values():
            top, *siblings = tops
            group = [name for one in tops for name in groups[one]]
            fact = (
                f"was in train mode{with_others(len(group) - len(tops))} during the step and put "
                f"back before its end{with_siblings(siblings)}, expected eval mode throughout"
            )
            remedy = f"Evaluate without it, or write `with {_AROUND}` around it if it is meant."
            module, call = woken[top]
            reason = consequences.of_evaluating(woken[n][0] for n in group)
            made = mode_finding(
                now, top, module, fact, remedy, call.site, siblings=siblings, why=reason
            )
            found = self._once(made)
            self._awake |= {n: (found, woken[n][0]) for n in group if n in affected}
            findings.append(found)
        return findings

    def _verify_restored(self, now: Moment) -> list[Finding]:
        past = self._unrestored
        self._unrestored = None
        if past is None:
            return []
        repairs = []
        for before in (True, False):
            named = {
                n: m for n, (m, b) in past.wrong.items() if b == before != m.training
            }
            affected = self._with_effect(named)
            for top, group in collapse(named).items():
                if not affected.keys() & set(group):
                    self._note(
                        top, named[top], "was left in another mode by an evaluation"
                    )
                    continue
                self._training.reported.update(id(named[n]) for n in group)
                found = self._unrestored_words(
                    now, past.stage, top, named[top], group, before
                )
                repairs.append((found, [(named[n], before) for n in group]))
        repairs += self._undone(now, past)
        return self._offer(repairs)

    def _unrestored_words(
        self,
        now: Moment,
        stage: str,
        top: str,
        module: nn.Module,
        group: list[str],
        before: bool,
    ) -> Finding:
        hook = f"on_{spelling(stage).hooks}_model_train"
        override = override_of(type(self._tree().root), hook)
        site, _ = who(module, not before)
        fact = (
            f"is in {word(not before)} mode{with_others(len(group) - 1)} after "
            f"{spelling(stage).words}, expected {word(before)} mode as before it"
        )
        remedy = 'Put back each submodule\'s own mode, or pass modes="fix".'
        if override is not None:
            site = override.site
            remedy = (
                f"Delete the override of `{hook}`: Lightning then restores each submodule's own "
                "mode."
            )
        elif not before:
            remedy = (
                "Put back only the modules that were in train mode: `.train()` and `unfreeze()` "
                "wake frozen ones too."
            )
        reason = consequences.of_waking([module])
        if before:
            reason = consequences.of_sleeping([module])
        return mode_finding(now, top, module, fact, remedy, site, why=reason)

    def _undone(self, now: Moment, past: Unrestored) -> Iterable[Repair]:
        """What was frozen at the end of an evaluation, and woken again by the loop."""
        undone = {
            n: m for n, m in past.undone.items() if m.training and n not in past.wrong
        }
        for top, group in collapse(undone).items():
            site, _ = who(undone[top], False)
            fact = (
                f"is in train mode{with_others(len(group) - 1)} although it was frozen during "
                f"{spelling(past.stage).words}: the loop then put back the modes from "
                "before it, expected eval mode"
            )
            remedy = "Freeze it in `on_train_epoch_start`, after modes are put back."
            reason = consequences.of_waking([undone[top]])
            found = mode_finding(now, top, undone[top], fact, remedy, site, why=reason)
            yield found, [(undone[n], False) for n in group]


def _cause_of(name: str, module: nn.Module) -> str:
    """What several modules that are in train mode have in common: the line that set them."""
    site, _ = who(module, True)
    if site is not None:
        return site.location
    return name
