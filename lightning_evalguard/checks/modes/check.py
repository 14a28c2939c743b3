"""Is every submodule in eval mode while it is evaluated, and in its train mode while it trains?"""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import CodeType, FrameType
from typing import Any, Literal

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.instruments.source import PLUMBING, Site, nearest, owner_of, site_at
from lightning_evalguard.model.tree import Modes, collapse, parent, registrations
from lightning_evalguard.report import Finding

Effect = Literal["certain", "possible"]


class ModesCheck(Check):
    """The `modes` check: flags around every step, restoration after every evaluation.

    Args:
        expected: Modes that a training plan declares, as (pattern, train mode) pairs; read anew
            at each look, so that the plan may change while it runs.
    """

    name = "modes"

    def __init__(self, expected: Sequence[tuple[str, bool]] = ()) -> None:
        self._expected = expected
        self._modes: Modes | None = None
        self._windows: list[_Window] = []
        self._unrestored: _Unrestored | None = None
        self._woken: list[tuple[nn.Module, _Call]] = []
        self._mend: list[tuple[nn.Module, bool]] = []

    # a run

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        registrations.start()
        _calls.start(self._woken)
        self._modes = Modes(root)
        self._windows = []
        self._unrestored = None
        self._training = _Training(self._modes, self._expected)
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        if self._modes is None:
            return ()
        findings = self._verify_restored(now)
        _calls.stop(self._woken)
        registrations.stop()
        self._modes = None
        return findings

    @property
    def modules(self) -> int:
        """How many modules are watched."""
        return len(self._modes.modules) if self._modes is not None else 0

    # an evaluation

    def start(self, now: Moment) -> Iterable[Finding]:
        modes = self._tree()
        findings = self._verify_restored(now)
        modes.refresh(force=True)
        self._windows.append(_Window(now.stage, modes))
        return findings

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        findings = self._in_train_mode(now) if self._tree().any_training() else ()
        self._woken.clear()
        return findings

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        findings = self._in_train_mode(now) if self._tree().any_training() else []
        if self._woken:
            findings += self._put_back_before_the_end(now, {f.subject for f in findings})
        return findings

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        if not self._windows:
            return ()
        window = self._windows.pop()
        self._training.due = True
        if error is not None:
            window.restore()
            return ()
        self._unrestored = _Unrestored(window.stage, window.wrong(self._tree(), self._expected))
        # In a fit, who restores modes by hand may do so until the next training step.
        return () if now.fitting else self._verify_restored(now)

    # training

    def before_train_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        return self._verify_restored(now) if self._unrestored is not None else ()

    def after_train_step(self, now: Moment) -> Iterable[Finding]:
        found, mend = self._training.look(now)
        self._mend += mend
        return found

    def fix(self) -> None:
        """Set the flags that the last findings named; never calls `train()` or `eval()`."""
        for module, flag in self._mend:
            module.training = flag
        self._training.accept(module for module, _ in self._mend)
        self._mend.clear()

    # how findings are made

    def _tree(self) -> Modes:
        assert self._modes is not None, "open() comes first"
        return self._modes

    def _in_train_mode(self, now: Moment) -> list[Finding]:
        modes = self._tree()
        modes.refresh(force=True)
        window = self._windows[-1] if self._windows else None
        bad = {}
        for name, module in zip(modes.names, modes.modules, strict=True):
            if not module.training or _is_metric(module):
                continue
            added = window is not None and not window.knows(module)
            if added and effect_of(module) is None:
                continue
            call = _calls.last(module)
            if call is not None and call.mode and call.allowed:
                continue
            bad[name] = module
        self._mend = [(m, False) for m in bad.values()]
        findings = []
        for top, names in collapse(bad).items():
            site, why = _who(bad[top], True)
            if site is None and not why:
                why = _override(type(modes.root), f"on_{_HOOK.get(now.stage, '')}_model_eval")
            fact = f"is in train mode{_with_others(len(names) - 1)}, expected eval mode"
            remedy = 'Call `.eval()` on it, or pass modes="fix".'
            if isinstance(why, _Override):
                site = why.site
                fact += f": `{why.name}` is overridden and leaves it so"
                remedy = f"Call `super().{why.method}(...)` in `{why.name}`."
            elif why:
                remedy = f"Remove `{why}`."
            findings.append(_finding(now, top, bad[top], fact, remedy, site))
        return findings

    def _put_back_before_the_end(self, now: Moment, told: set[str | None]) -> list[Finding]:
        names = {id(m): n for n, m in zip(self._tree().names, self._tree().modules, strict=True)}
        woken: dict[str, tuple[nn.Module, _Call]] = {}
        for module, call in self._woken:
            name = names.get(id(module))
            if name is not None and not (module.training or call.allowed or _is_metric(module)):
                woken.setdefault(name, (module, call))
        self._woken.clear()
        findings = []
        for top, group in collapse(woken).items():
            if top in told:
                continue
            module, call = woken[top]
            fact = (
                f"was in train mode{_with_others(len(group) - 1)} during the step and put back "
                "before its end, expected eval mode throughout"
            )
            remedy = (
                'Evaluate without it, or write `with allow("modes", reason=...)` around it '
                "if it is meant."
            )
            findings.append(_finding(now, top, module, fact, remedy, call.site))
        return findings

    def _verify_restored(self, now: Moment) -> list[Finding]:
        past, self._unrestored = self._unrestored, None
        if past is None:
            return []
        findings = []
        hook = f"on_{_HOOK.get(past.stage, '')}_model_train"
        override = _override(type(self._tree().root), hook)
        for before in (True, False):
            named = {n: m for n, (m, b) in past.wrong.items() if b == before != m.training}
            self._mend += [(m, before) for m in named.values()]
            self._training.reported.update(id(m) for m in named.values())
            for top, group in collapse(named).items():
                site, _ = _who(named[top], not before)
                fact = (
                    f"is in {_word(not before)} mode{_with_others(len(group) - 1)} after "
                    f"{_DONE.get(past.stage, 'evaluation')}, expected {_word(before)} mode as "
                    "before it"
                )
                remedy = 'Put back each submodule\'s own mode, or pass modes="fix".'
                if override is not None:
                    site = override.site
                    remedy = (
                        f"Delete the override of `{hook}`: Lightning then restores each "
                        "submodule's own mode."
                    )
                elif not before:
                    remedy = (
                        "Put back only the modules that were in train mode: `.train()` and "
                        "`unfreeze()` wake frozen ones too."
                    )
                findings.append(_finding(now, top, named[top], fact, remedy, site))
        return findings


@dataclass
class _Unrestored:
    """What an evaluation left in another mode than it found: name -> (module, mode before)."""

    stage: str
    wrong: dict[str, tuple[nn.Module, bool]]


class _Window:
    """The modes that an evaluation found, to be found again after it."""

    def __init__(self, stage: str, modes: Modes) -> None:
        self.stage = stage
        flags = modes.read()
        self._captured = list(zip(modes.modules, flags, strict=True))
        self._by_id = {id(m): flag for m, flag in self._captured}
        self._by_name = dict(zip(modes.names, flags, strict=True))

    def knows(self, module: nn.Module) -> bool:
        return id(module) in self._by_id

    def wrong(
        self, modes: Modes, expected: Sequence[tuple[str, bool]]
    ) -> dict[str, tuple[nn.Module, bool]]:
        """The modules whose mode differs from before, with the mode they had.

        A module that replaced another one under its name is expected in that one's mode.
        """
        modes.refresh(force=True)
        wrong = {}
        for name, module in zip(modes.names, modes.modules, strict=True):
            before = self._by_id.get(id(module), self._by_name.get(name))
            if before is None or module.training == before or _is_metric(module):
                continue
            if _planned(expected, name) is None:
                wrong[name] = (module, before)
        return wrong

    def restore(self) -> None:
        for module, flag in self._captured:
            if module.training != flag:
                module.training = flag


class _Training:
    """Looks at modes after training steps: in full when due, else only where a flag moved."""

    def __init__(self, modes: Modes, expected: Sequence[tuple[str, bool]]) -> None:
        self.due = True
        self.reported: set[int] = set()
        self._modes = modes
        self._expected = expected
        self._accepted: list[bool] = []
        self._accepted_names: list[str] = []
        self._trained: dict[str, bool] = {}
        self._frozen_norms: dict[str, list[tuple[Any, int]]] | None = None

    def look(self, now: Moment) -> tuple[list[Finding], list[tuple[nn.Module, bool]]]:
        flags = self._modes.read()
        if self._frozen_norms is not None and self._frozen_norms:
            norms, self._frozen_norms = self._frozen_norms, {}
            found, mend = self._frozen_norms_in_train(now, norms)
        else:
            found, mend = [], []
        if not self.due and flags == self._accepted:
            return found, mend
        more, more_mend = self._judge(now, flags)
        self.due = False
        self.accept()
        return found + more, mend + more_mend

    def accept(self, mended: Iterable[nn.Module] = ()) -> None:
        """Take the modes as they are now for those that the next step is compared with."""
        self._accepted, self._accepted_names = self._modes.read(), list(self._modes.names)
        self.reported.difference_update(id(m) for m in mended)

    def _judge(
        self, now: Moment, flags: list[bool]
    ) -> tuple[list[Finding], list[tuple[nn.Module, bool]]]:
        modes = self._modes
        trains = _trains(modes)
        before = dict(zip(self._accepted_names, self._accepted, strict=True))
        trained, self._trained = self._trained, trains
        asleep: dict[str, tuple[nn.Module, Effect, bool]] = {}
        woken: dict[str, nn.Module] = {}
        planned: dict[str, tuple[nn.Module, bool]] = {}
        for name, module, flag in zip(modes.names, modes.modules, flags, strict=True):
            effect = effect_of(module)
            if effect is None:
                continue
            plan = _planned(self._expected, name)
            if plan is not None:
                if plan != flag:
                    planned[name] = (module, plan)
                continue
            moved = name in before and before[name] != flag
            if not (self.due or moved):
                continue
            told = id(module) in self.reported
            if flag:
                self.reported.discard(id(module))
                # unfrozen and woken at the same time is a plan of its own
                if moved and not told and trained.get(name) == trains[name]:
                    woken[name] = module
            elif trains[name] and not told and not self._meant_in_eval(name, module):
                asleep[name] = (module, effect, moved)
        findings = [*self._asleep(now, asleep), *self._woken(now, woken, trains)]
        for name, (module, plan) in planned.items():
            site, _ = _who(module, not plan)
            fact = f"is in {_word(not plan)} mode, expected {_word(plan)} mode as expect_modes says"
            remedy = f"Call `.{'train' if plan else 'eval'}()` on it, or change the plan."
            findings.append(_finding(now, name, module, fact, remedy, site))
        if self._frozen_norms is None:
            self._frozen_norms = self._candidates(flags, trains)
        mend = [(m, True) for m, _, _ in asleep.values()]
        mend += self._insensitive_around(asleep)
        mend += [(m, False) for m in woken.values()]
        mend += list(planned.values())
        self.reported.update(id(m) for m, _, _ in asleep.values())
        return findings, mend

    def _asleep(
        self, now: Moment, asleep: dict[str, tuple[nn.Module, Effect, bool]]
    ) -> Iterator[Finding]:
        by_top: dict[str, list[str]] = {}
        for name in asleep:
            by_top.setdefault(self._top_in_eval(name), []).append(name)
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        for top, names in by_top.items():
            certain = any(asleep[n][1] == "certain" for n in names)
            site, _ = _who(modules[top], False)
            kinds = Counter(type(asleep[n][0]).__name__ for n in names)
            listed = ", ".join(f"{n} {k}" for k, n in kinds.most_common(3))
            over = "" if names == [top] else f" together with {listed}"
            if len(kinds) > 3:
                over += ", ..."
            fact = f"is in eval mode{over} while its parameters train, expected train mode"
            if site is not None:
                remedy = f"Call `.train()` on it after `{site.expression}`"
            else:
                remedy = f"Call `{f'model.{top}' if top else 'model'}.train()` before `trainer.fit`"
            remedy += ', or pass modes="fix".'
            yield _finding(now, top, modules[top], fact, remedy, site, certain=certain)

    def _woken(
        self, now: Moment, woken: dict[str, nn.Module], trains: dict[str, bool]
    ) -> Iterator[Finding]:
        for top, names in collapse(woken).items():
            site, _ = _who(woken[top], True)
            frozen = "" if trains[top] else " although its parameters are frozen"
            fact = (
                f"went from eval to train mode{_with_others(len(names) - 1)} between training "
                f"steps{frozen}, expected eval mode as in the steps before"
            )
            remedy = "Leave it in eval mode, or declare the plan with `guard.expect_modes(...)`."
            yield _finding(now, top, woken[top], fact, remedy, site)

    def _top_in_eval(self, name: str) -> str:
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        top = name
        while (up := parent(top)) is not None and up in modules and not modules[up].training:
            top = up
        return top

    def _insensitive_around(
        self, asleep: dict[str, tuple[nn.Module, Effect, bool]]
    ) -> Iterator[tuple[nn.Module, bool]]:
        tops = {self._top_in_eval(name) for name in asleep}
        for name, module in zip(self._modes.names, self._modes.modules, strict=True):
            if module.training or effect_of(module) is not None:
                continue
            if any(name == t or not t or name.startswith(f"{t}.") for t in tops):
                yield module, True

    def _meant_in_eval(self, name: str, module: nn.Module) -> bool:
        """Whether an overridden `train()` keeps this module in eval mode."""
        call = _calls.last(module)
        if call is not None and not call.mode and call.inside_train:
            return True
        if _keeps_eval(_class(module)):
            return True
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        up = parent(name)
        while up is not None:
            above = modules.get(up)
            if above is not None and above.training and _keeps_eval(_class(above)):
                return True
            up = parent(up)
        return False

    def _candidates(
        self, flags: list[bool], trains: dict[str, bool]
    ) -> dict[str, list[tuple[Any, int]]]:
        """Frozen batch norms in train mode, with their parameters' versions.

        A teacher that follows its student is frozen too, and often meant to be in train mode. It
        is told by its parameters, which move although they are frozen, or by its twin that trains.
        """
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        twins = {_shape_of(m) for n, m in modules.items() if trains[n]}
        frozen = {}
        for name, flag in zip(self._modes.names, flags, strict=True):
            module = modules[name]
            if not (flag and _tracks_statistics(module)) or trains[name]:
                continue
            if _planned(self._expected, name) is not None:
                continue
            top, up = name, parent(name)
            while up is not None and up in trains and not trains[up]:
                top, up = up, parent(up)
            if top == "" or _shape_of(modules[top]) in twins:
                continue
            around = [(p, _version(p)) for p in modules[top].parameters()]
            frozen[name] = around
        return frozen

    def _frozen_norms_in_train(
        self, now: Moment, norms: dict[str, list[tuple[Any, int]]]
    ) -> tuple[list[Finding], list[tuple[nn.Module, bool]]]:
        modules = dict(zip(self._modes.names, self._modes.modules, strict=True))
        still = {
            name: modules[name]
            for name, around in norms.items()
            if name in modules
            and modules[name].training
            and not any(p.requires_grad or _version(p) != v for p, v in around)
        }
        if not still:
            return [], []
        by_part: dict[str, list[str]] = {}
        for name in still:
            by_part.setdefault(name.split(".")[0], []).append(name)
        findings = []
        for part, names in by_part.items():
            subject = names[0] if len(names) == 1 else part
            kind = type(still[names[0]]).__name__
            many = "" if len(names) == 1 else f" with {len(names)} {kind}"
            fact = (
                f"is frozen but in train mode{many}: running statistics still move, expected "
                "eval mode"
            )
            remedy = "Call `.eval()` on it and override `train()` to keep it so."
            findings.append(
                _finding(now, subject, modules[subject], fact, remedy, None, certain=False)
            )
        return findings, [(m, False) for m in still.values()]


# which modules a mode has an effect on


def effect_of(module: nn.Module) -> Effect | None:
    """Whether train mode changes what `module` itself computes.

    Returns:
        ``"certain"`` for dropout with p > 0, batch norm and their kin; ``"possible"`` for any other
        class whose code reads ``training``; None where the mode has no effect.
    """
    drop = getattr(module, "dropout", 0.0)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return "certain" if module.p > 0 else None
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return "certain" if module.track_running_stats else None
    if isinstance(module, nn.RReLU):
        return "certain" if module.lower != module.upper else None
    if isinstance(module, nn.RNNBase):
        return "certain" if module.dropout > 0 and module.num_layers > 1 else None
    if isinstance(module, nn.MultiheadAttention):
        return "certain" if isinstance(drop, float) and drop > 0 else None
    return "possible" if _reads_training(_class(module)) else None


def _class(module: nn.Module) -> Any:
    return type(module)  # untyped: mypy holds that Module's __hash__ does not suit a cache's key


_NO_EFFECT = ("torch.nn.", "torchmetrics.", "lightning.", "pytorch_lightning.")
_NOT_COMPUTING = frozenset({"__init__", "train", "eval", "extra_repr", "__repr__", "__setstate__"})


@functools.cache
def _reads_training(cls: type) -> bool:
    """Whether any method that `cls` or a user's base class defines reads ``training``."""
    for base in cls.__mro__:
        if base is nn.Module:
            break
        if f"{base.__module__}.".startswith(_NO_EFFECT):
            continue
        for name, member in vars(base).items():
            code = getattr(member, "__code__", None)
            if name not in _NOT_COMPUTING and code is not None and _names(code, "training"):
                return True
    return False


def _names(code: CodeType, word: str) -> bool:
    return word in code.co_names or any(
        _names(c, word) for c in code.co_consts if isinstance(c, CodeType)
    )


@functools.cache
def _keeps_eval(cls: type) -> bool:
    """Whether `cls` overrides `train()` with code that sets eval mode on a part of itself."""
    for base in cls.__mro__:
        if base is nn.Module:
            return False
        code = getattr(vars(base).get("train"), "__code__", None)
        if code is not None and not base.__module__.startswith("torch."):
            return (
                _names(code, "eval") or _names(code, "training") or code.co_names.count("train") > 0
            )
    return False


def _tracks_statistics(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and module.running_mean is not None
        and module.momentum != 0.0
    )


def _is_metric(module: nn.Module) -> bool:
    return _metric_class(_class(module))


@functools.cache
def _metric_class(cls: type) -> bool:
    return any(c.__module__.startswith("torchmetrics.") for c in cls.__mro__)


def _trains(modes: Modes) -> dict[str, bool]:
    """Whether each module stands in a part that trains.

    A module with parameters trains if any of them requires a gradient; one without, if the
    nearest module around it that has parameters does.
    """
    modes.refresh()
    known = set(modes.names)
    some: dict[str, bool] = {}
    for name, module in zip(modes.names, modes.modules, strict=True):
        flags = [p.requires_grad for p in module._parameters.values() if p is not None]
        if not flags:
            continue
        at: str | None = name
        while at is not None:
            if at in known:
                some[at] = some.get(at, False) or any(flags)
            at = parent(at)
    trains = {}
    for name in modes.names:
        at = name
        while at not in some and (up := parent(at)) is not None:
            at = up
        trains[name] = some.get(at, False)
    return trains


def _shape_of(module: nn.Module) -> tuple[Any, ...]:
    shapes = (None if is_lazy(p) else p.shape for p in module.parameters())
    return (type(module), tuple(shapes))


def _version(tensor: Any) -> int:
    try:
        return int(tensor._version)
    except RuntimeError:  # inference tensors do not track versions
        return -1


def _planned(expected: Sequence[tuple[str, bool]], name: str) -> bool | None:
    for pattern, mode in reversed(expected):
        if fnmatchcase(name, pattern):
            return mode
    return None


# who flipped a mode


@dataclass
class _Call:
    """One outermost call of `train(mode)`, shared by all modules it reached."""

    mode: bool
    allowed: bool
    code: CodeType | None
    lasti: int
    lineno: int
    inside_train: bool

    @property
    def site(self) -> Site | None:
        return site_at(self.code, self.lasti, self.lineno) if self.code is not None else None


class _Calls:
    """Records who called `train()` or `eval()`, while at least one run is open.

    ``nn.Module.train`` is wrapped once for the process. The original does all the work.
    """

    def __init__(self) -> None:
        self._listeners: list[list[tuple[nn.Module, _Call]]] = []
        self._last: dict[int, _Call] = {}
        self._original: Callable[..., Any] | None = None
        self._local = threading.local()

    def start(self, woken: list[tuple[nn.Module, _Call]]) -> None:
        self._listeners.append(woken)
        if self._original is not None:
            return
        original = self._original = nn.Module.train
        code = original.__code__
        local, last, listeners = self._local, self._last, self._listeners

        @functools.wraps(original)
        def train(module: nn.Module, mode: bool = True) -> nn.Module:
            outer: _Call | None = getattr(local, "call", None)
            frame = _outside(sys._getframe(1), module, code)
            if outer is None or frame is None or frame.f_code is not code:
                local.call = call = _call_at(frame, mode)
            else:
                call = outer  # the original walks down to this module
            before = module.__dict__.get("training")
            try:
                return original(module, mode)
            finally:
                local.call = outer
                last[id(module)] = call
                if mode and before is False:
                    for heard in listeners:
                        heard.append((module, call))

        nn.Module.train = train  # type: ignore[method-assign, assignment]

    def stop(self, woken: list[tuple[nn.Module, _Call]]) -> None:
        self._listeners[:] = [heard for heard in self._listeners if heard is not woken]
        if not self._listeners and self._original is not None:
            nn.Module.train = self._original  # type: ignore[method-assign]
            self._original = None
            self._last.clear()

    def last(self, module: nn.Module) -> _Call | None:
        return self._last.get(id(module))


_calls = _Calls()


def _outside(frame: FrameType | None, module: nn.Module, code: CodeType) -> FrameType | None:
    """The first frame outside `eval()` and overrides of `train()` of this very module."""
    while (
        frame is not None
        and frame.f_code is not code
        and frame.f_code.co_name in ("train", "eval")
        and frame.f_locals.get("self") is module
    ):
        frame = frame.f_back
    return frame


def _call_at(frame: FrameType | None, mode: bool) -> _Call:
    at = nearest(frame, PLUMBING)
    if at is None:
        return _Call(bool(mode), allowed("modes"), None, 0, 0, False)
    # a user's own train() that sets the mode of one of its parts
    by_train = at.f_code.co_name == "train"
    if owner_of(at.f_code.co_filename) in _LOOPS:
        return _Call(bool(mode), allowed("modes"), None, 0, 0, by_train)
    return _Call(bool(mode), allowed("modes"), at.f_code, at.f_lasti, at.f_lineno, by_train)


_LOOPS = frozenset({"lightning", "pytorch_lightning", "lightning_fabric"})


@dataclass(frozen=True)
class _Override:
    name: str
    method: str
    site: Site


def _who(module: nn.Module, mode: bool) -> tuple[Site | None, str | _Override | None]:
    """Who put `module` into `mode`, or what stopped it from leaving it."""
    call = _calls.last(module)
    if call is not None and call.mode == mode and call.code is not None:
        site = call.site
        return site, site.expression if site is not None else None
    if mode:
        for method in ("eval", "train"):
            override = _override(type(module), method)
            if override is not None:
                return None, override
    return None, None


def _override(cls: type, method: str) -> _Override | None:
    for base in cls.__mro__:
        member = vars(base).get(method)
        if member is None:
            continue
        code = getattr(member, "__code__", None)
        if code is None or owner_of(code.co_filename) in (*_LOOPS, "torch", "self"):
            return None
        where = f"{code.co_filename}:{code.co_firstlineno}"
        site = Site(where, f"def {method}(...)", method, owner_of(code.co_filename))
        return _Override(f"{base.__name__}.{method}", method, site)
    return None


# words

_HOOK = {
    "sanity_check": "validation",
    "validate": "validation",
    "test": "test",
    "predict": "predict",
}
_DONE = {
    "sanity_check": "the sanity check",
    "validate": "validation",
    "test": "testing",
    "predict": "prediction",
}


def _word(mode: bool) -> str:
    return "train" if mode else "eval"


def _with_others(n: int) -> str:
    if n <= 0:
        return ""
    return f" with {n} submodule{'s' if n > 1 else ''}"


def _finding(
    now: Moment,
    name: str,
    module: nn.Module,
    fact: str,
    remedy: str,
    site: Site | None,
    certain: bool = True,
) -> Finding:
    return Finding(
        check="modes",
        stage=now.stage,
        fact=fact,
        remedy=remedy,
        subject=name,
        subject_type=type(module).__name__,
        location=site.location if site is not None else None,
        expression=site.expression if site is not None else None,
        function=site.function if site is not None else None,
        leads="subject",
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=certain,
    )
