"""Does every part that learns do so in train mode, and does what is frozen stay in eval mode?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.modes import consequences
from lightning_evalguard.checks.modes.bystanders import Bystanders
from lightning_evalguard.checks.modes.callers import calls, who
from lightning_evalguard.checks.modes.effect import (
    effect_of,
    is_norm,
    tracks_statistics,
)
from lightning_evalguard.checks.modes.learning import (
    Gradients,
    Learning,
    held_by,
    is_at_or_below,
    reached_from,
)
from lightning_evalguard.checks.modes.plans import (
    Repair,
    is_kept_by_train,
    is_set_by_a_hook,
    planned,
)
from lightning_evalguard.checks.modes.words import (
    common,
    kinds_of,
    mode_finding,
    patterns,
    with_others,
    word,
)
from lightning_evalguard.model.tensors import version
from lightning_evalguard.model.tree import Modes, collapse, parent

# training steps whose graph is searched for the parameters of a part in eval mode
_WALKS = 2


@dataclass
class _Asleep:
    """A module in eval mode, in a part that is set up to learn: no gradient has shown that it does.

    Attributes:
        name: Its qualified name.
        certain: Whether the mode surely has an effect on it.
        top: The largest part around it that is in eval mode.
        meant: Whether the user's code keeps it so: in a hook of training, or in a `train()`.
        parameters: Those of the part that are set up to learn.
        now: When it was first so.
        walks: How many more steps' graphs are searched.
    """

    name: str
    module: nn.Module
    certain: bool
    top: str
    meant: bool
    parameters: list[Tensor]
    now: Moment
    walks: int = _WALKS


class TrainingModes:
    """Looks at modes after training steps: in full when due, else only where a flag moved.

    Args:
        modes: The module tree.
        expected: Modes that a plan declares.
        optimizers: Gives the optimizers of the run.
        plans: Whether a callback may have set modes on purpose before the run was seen.
    """

    def __init__(
        self,
        modes: Modes,
        expected: Sequence[tuple[str, bool]],
        optimizers: Callable[[], Iterable[Any]] = tuple,
        plans: bool = False,
    ) -> None:
        self.due = True
        self.reported: set[int] = set()
        self._modes = modes
        self._expected = expected
        self._optimizers = optimizers
        self._plans = plans
        self._asleep: dict[int, _Asleep] = {}
        self._gradients = Gradients()
        self._bystanders = Bystanders(modes, expected)
        self._epoch: int | None = None
        self._held: int | None = None  # how many parameters optimizers hold
        self._accepted: list[bool] = []
        self._accepted_names: list[str] = []
        self._number = calls.number  # of the last call of `train()` that was looked at
        self._read_at = -1  # and when flags were read last
        # of what was in eval mode, whether it was to learn
        self._learned: dict[str, bool] = {}
        self._batches: dict[int, int | None] = {}
        self._at_open = self._in_eval()

    def _in_eval(self) -> dict[int, bool]:
        """Modules in eval mode before the run began, and whether they were set up to learn."""
        flags = self._modes.read()
        if all(flags):
            return {}
        learning = Learning(self._modes, None)
        named = zip(self._modes.names, self._modes.modules, flags, strict=True)
        at_open = {}
        for name, module, flag in named:
            if not flag and effect_of(module) is not None:
                at_open[id(module)] = learning.learns(name)
                self._mark(module)
        return at_open

    def _mark(self, module: nn.Module) -> None:
        count = module._buffers.get("num_batches_tracked")
        self._batches[id(module)] = version(count) if count is not None else None

    # the events

    @property
    def waits(self) -> bool:
        """Whether something sleeps or stands by, of which the next step may tell."""
        return bool(self._asleep) or self._bystanders.looks

    def before_step(self) -> list[Repair]:
        """A training step is about to run; the backward pass of the last one is over."""
        found = self.after_backward()
        self._bystanders.before_step()
        return found

    def after_step(self, now: Moment, outputs: Any) -> list[Repair]:
        """A training step returned `outputs`."""
        if now.thinned and self._is_quiet(now):
            return []
        found = list(self._bystanders.after_step(now)) if self._bystanders.looks else []
        if now.epoch != self._epoch:
            self._epoch, self.due = now.epoch, True
        if self._learned and self._count_held() != self._held:
            self.due = True  # parameters were added to an optimizer
        # A flag moves by `train()`, or unheard by an assignment: then the next full look finds it.
        if self.due or not now.thinned or self._may_have_moved():
            self._read_at = calls.number
            flags = self._modes.read()
            if self.due or flags != self._accepted:
                found += self._judge(now, flags)
                self.due = False
                self.accept()
        if self._asleep:
            found += self._proven(outputs)
        return found

    def _is_quiet(self, now: Moment) -> bool:
        """Whether no flag may have moved, and nothing is looked for: so it is in most steps."""
        if self.due or now.epoch != self._epoch or self._learned or self.waits:
            return False
        return not self._may_have_moved()

    def _may_have_moved(self) -> bool:
        """Whether a call or a registration may have moved a flag since they were read."""
        return calls.number != self._read_at or self._modes.has_grown()

    def after_backward(self) -> list[Repair]:
        """No step runs: what a gradient has reached by now."""
        if not self._asleep:
            return []
        return self._reached(self._gradients.arrived())

    def close(self) -> None:
        """Leave nothing behind on modules and parameters."""
        self._gradients.stop()
        self._bystanders.stop()

    def accept(self, repaired: Iterable[nn.Module] = ()) -> None:
        """Take the modes as they are now for those that the next step is compared with."""
        self._accepted, self._accepted_names = (
            self._modes.read(),
            list(self._modes.names),
        )
        self._number = calls.number
        self.reported.difference_update(id(m) for m in repaired)

    # judging

    def _count_held(self) -> int:
        groups = (g for o in self._optimizers() for g in getattr(o, "param_groups", ()))
        return sum(len(group["params"]) for group in groups)

    def _judge(self, now: Moment, flags: list[bool]) -> list[Repair]:
        modes = self._modes
        learning = Learning(modes, held_by(self._optimizers(), modes.root))
        self._held = self._count_held()
        before = dict(zip(self._accepted_names, self._accepted, strict=True))
        learned, self._learned = self._learned, {}
        asleep: dict[str, nn.Module] = {}
        woken: dict[str, nn.Module] = {}
        found: list[Repair] = []
        for name, module, flag in zip(modes.names, modes.modules, flags, strict=True):
            plan = None
            if self._expected:
                plan = planned(self._expected, name)
            if plan is not None:
                if plan != flag and effect_of(module) is not None:
                    found.append(self._against_plan(now, name, module, plan))
                continue
            moved = name in before and before[name] != flag
            awake_at_open = id(module) not in self._at_open
            if flag and not moved and (before or awake_at_open):
                continue
            if effect_of(module) is None:
                continue
            if flag:
                told = id(module) in self.reported
                self.reported.discard(id(module))
                if not told and self._is_woken(
                    name, module, learning, learned, bool(before)
                ):
                    woken[name] = module
            else:
                self._learned[name] = learning.learns(name)
                if self._learned[name] and (self.due or moved):
                    asleep[name] = module
        self._suspect(now, asleep, learning)
        found += self._woken(now, woken, learning)
        self._batches.clear()
        for name in self._learned:
            self._mark(dict(zip(modes.names, modes.modules, strict=True))[name])
        self._bystanders.consider(flags, learning)
        return found

    @staticmethod
    def _against_plan(now: Moment, name: str, module: nn.Module, plan: bool) -> Repair:
        site, _ = who(module, not plan)
        fact = f"is in {word(not plan)} mode, expected {word(plan)} mode as expect_modes says"
        remedy = f"Call `.{'train' if plan else 'eval'}()` on it, or change the plan."
        reason = consequences.of_waking([module])
        if plan:
            reason = consequences.of_sleeping([module])
        found = mode_finding(now, name, module, fact, remedy, site, why=reason)
        return found, [(module, plan)]

    # in eval mode while it learns

    def _suspect(
        self, now: Moment, asleep: dict[str, nn.Module], learning: Learning
    ) -> None:
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        kept = {n for n, m in asleep.items() if is_kept_by_train(n, m, self._modes)}
        tops = {n: self._top_in_eval(n, modules) for n in asleep}
        meant = {n for n, m in asleep.items() if n in kept or self._is_hooked(m)}
        if not learning.elsewhere(tops[n] for n in meant):
            meant = set()  # that is the whole model, and no plan
        norms = kept & meant
        silent = norms
        if not all(is_norm(asleep[n]) for n in norms):
            silent = set()
        still = {}
        for name, module in asleep.items():
            key = id(module)
            if key in self.reported or name in silent:
                continue
            still[key] = self._asleep.get(key) or _Asleep(
                name,
                module,
                effect_of(module) == "certain",
                tops[name],
                name in meant,
                learning.parameters(name),
                replace(now),
            )
        self._asleep = still if self.due else self._asleep | still

    def _is_hooked(self, module: nn.Module) -> bool:
        if is_set_by_a_hook(module):
            return True
        call = calls.last(module)
        # the loop's own calls are put back
        by_nobody = call is None or call.code is None
        return self._plans and id(module) in self._at_open and by_nobody

    def _top_in_eval(self, name: str, modules: dict[str, nn.Module]) -> str:
        top = name
        while (
            (up := parent(top)) is not None
            and up in modules
            and not modules[up].training
        ):
            top = up
        return top

    def _proven(self, outputs: Any) -> list[Repair]:
        """Ask the graph of the step that just ended, and have the backward pass tell the rest."""
        reached = set(self._gradients.arrived())
        searched = [a for a in self._asleep.values() if a.walks > 0]
        if searched:
            from_loss = reached_from(outputs)
            reached |= from_loss
            for asleep in searched:
                asleep.walks -= 1
                if not from_loss:  # the step ran backward itself
                    reached |= {id(p) for p in asleep.parameters if p.grad is not None}
        found = self._reached(reached)
        for asleep in self._asleep.values():
            self._gradients.watch(asleep.parameters)
        return found

    def _reached(self, reached: set[int]) -> list[Repair]:
        proven = [
            a
            for a in self._asleep.values()
            if any(id(p) in reached for p in a.parameters)
        ]
        if not proven:
            return []
        for asleep in proven:
            del self._asleep[id(asleep.module)]
        if not self._asleep:
            self._gradients.stop()
        self.reported.update(id(a.module) for a in proven)
        by_cause: dict[Any, list[_Asleep]] = {}
        for asleep in proven:
            by_cause.setdefault(self._cause(asleep), []).append(asleep)
        return [self._found_asleep(group) for group in by_cause.values()]

    @staticmethod
    def _cause(asleep: _Asleep) -> tuple[Any, ...]:
        call = calls.last(asleep.module)
        if call is None or call.mode or call.code is None:
            return asleep.meant, asleep.top
        return asleep.meant, call.code, call.lineno

    def _found_asleep(self, group: list[_Asleep]) -> Repair:
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        tops = list(dict.fromkeys(a.top for a in group))
        names = [a.name for a in group]
        top = tops[0] if len(tops) == 1 else common(tops)
        top = top if top in modules else tops[0]
        site, _ = who(
            modules[tops[0]] if tops[0] in modules else group[0].module, False
        )
        listed = kinds_of(a.module for a in group)
        if len(tops) == 1:
            over = ""
            if names != tops:
                over = f" ({listed})"
            fact = (
                f"is in eval mode{over} while its parameters train, expected train mode"
            )
        else:
            fact = f"holds {listed} in eval mode while their parameters train, expected train mode"
        meant = group[0].meant
        remedy = (
            self._remedy(top, names, tops, site)
            if meant
            else self._call_train(top, site)
        )
        certain = not meant and any(a.certain for a in group)
        subject = modules.get(top, group[0].module)
        found = mode_finding(
            group[0].now,
            top,
            subject,
            fact,
            remedy,
            site,
            certain=certain,
            why=consequences.of_sleeping(a.module for a in group),
        )
        if meant:
            return found, []
        flags = [(a.module, True) for a in group]
        return found, flags + [(m, True) for m in self._insensitive_in(tops)]

    @staticmethod
    def _call_train(top: str, site: Any) -> str:
        if site is not None:
            return f'Call `.train()` on it after {site.quoted}, or pass modes="fix".'
        model = "model"
        if top:
            model = f"model.{top}"
        return f'Call `{model}.train()` before `trainer.fit`, or pass modes="fix".'

    def _remedy(self, top: str, names: list[str], tops: list[str], site: Any) -> str:
        pairs = zip(self._modes.names, self._modes.modules, strict=True)
        others = [n for n, m in pairs if n not in names and effect_of(m) is not None]
        listed = patterns(names, others, tops)
        return (
            f"Write `guard.expect_modes(eval={listed})` if that is the plan, "
            "else call `.train()`."
        )

    def _insensitive_in(self, tops: list[str]) -> Iterator[nn.Module]:
        for name, module in zip(self._modes.names, self._modes.modules, strict=True):
            if module.training or effect_of(module) is not None:
                continue
            if any(is_at_or_below(name, top) for top in tops):
                yield module

    # in train mode though it was frozen in eval mode

    def _is_woken(
        self,
        name: str,
        module: nn.Module,
        learning: Learning,
        learned: dict[str, bool],
        seen_before: bool,
    ) -> bool:
        """Whether a module that was in eval mode should not be in train mode now."""
        did_learn = (
            learned.get(name, False) if seen_before else self._at_open[id(module)]
        )
        learns = learning.learns(name)
        back_and_forth = calls.slept(module, self._number)
        # unfrozen: a plan, but not where it was frozen just before
        if learns and not did_learn:
            return back_and_forth
        if learns:
            return seen_before and not self._is_named(module)
        if not seen_before:
            unfrozen = any(p.requires_grad for p in module.parameters())
            return back_and_forth or (unfrozen and not did_learn)
        return True

    def _is_named(self, module: nn.Module) -> bool:
        """Whether `train()` was called on it or its part, and not on the whole model."""
        call = calls.last(module)
        return call is not None and call.mode and call.receiver != id(self._modes.root)

    def _acts(self, module: nn.Module) -> bool:
        return tracks_statistics(module) and self._has_moved(module)

    def _woken(
        self, now: Moment, woken: dict[str, nn.Module], learning: Learning
    ) -> Iterator[Repair]:
        # What one call wakes is as certain as the surest of it.
        acting = [m for n, m in woken.items() if learning.learns(n) or self._acts(m)]
        sure = {calls.last(module) for module in acting}
        for top, names in collapse(woken).items():
            group = [woken[n] for n in names]
            learns = any(learning.learns(n) for n in names)
            certain = any(calls.last(m) in sure for m in group)
            if not certain and all(tracks_statistics(m) for m in group):
                continue  # they are not used, and nothing moves
            site, _ = who(woken[top], True)
            frozen = " although its parameters are frozen"
            if learns:
                frozen = ""
            fact = (
                f"went from eval to train mode{with_others(len(names) - 1)} between training "
                f"steps{frozen}, expected eval mode as in the steps before"
            )
            remedy = "Leave it in eval mode, or declare the plan with `guard.expect_modes(...)`."
            found = mode_finding(
                now,
                top,
                woken[top],
                fact,
                remedy,
                site,
                certain=certain,
                why=consequences.of_waking(group),
            )
            yield found, [(m, False) for m in group]

    def _has_moved(self, module: nn.Module) -> bool:
        count = module._buffers.get("num_batches_tracked")
        before = self._batches.get(id(module))
        return count is None or before is None or version(count) != before
