"""Does an evaluation run without autograd, and keep no graph?"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._contextlib
from torch import nn

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.instruments.dispatch import Op, Subscriber, tensors_in
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.model.tensors import Inventory, Kept, is_metric, kept
from lightning_evalguard.model.tree import registrations
from lightning_evalguard.report import Finding

if TYPE_CHECKING:
    from lightning_evalguard.instruments.replay import Look

# batches of an evaluation after which the model's attributes are looked at
_CLOSELY = 2
_EXPECTED = "expected torch.no_grad() or inference_mode()"


class GradCheck(Check):
    """The `grad` check: grad mode and graphs around every step, operators where they are shown.

    A graph that the step itself consumes (``torch.autograd.grad`` for forces, saliency, a gradient
    penalty) is what grad mode is for, and no finding.
    """

    name = "grad"

    def __init__(self) -> None:
        self._inventory: Inventory | None = None
        self._pending: list[_Violation] = []
        self._reported: set[str] = set()
        self._evaluations = 0
        self._entered = False
        self._on_at_entry = False
        self._before: dict[str, dict[str, Kept]] | None = None
        self._sizes: dict[str, int] = {}
        self._left_over: dict[str, dict[str, Kept]] = {}
        self._grown: dict[str, Site] = {}
        self._left_on: Site | None = None
        self._growths: dict[str, int] = {}
        self._accumulating: set[str] = set()
        self._batches, self._longest = 0, 0

    # a run

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        registrations.start()
        self._inventory = Inventory(root)
        self._pending, self._reported = [], set()
        self._evaluations = 0
        self._sizes = {}
        self._left_over = {}
        self._grown = {}
        self._growths, self._longest = {}, 0
        self._accumulating = set()
        self._left_on = None
        self._entered = False
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        if self._inventory is None:
            return ()
        registrations.stop()
        self._inventory = None
        return self._flush(now)

    # an evaluation

    def start(self, now: Moment) -> Iterable[Finding]:
        self._reported = set()
        self._evaluations += 1
        self._left_over = {}
        self._entered = False
        self._on_at_entry = False
        self._batches = 0
        return ()

    def standing(self) -> Mapping[str, Any]:
        return {"grad mode": torch.is_grad_enabled(), **_sizes(self._attributes())}

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        if now.thinned and not (
            torch.is_grad_enabled() or self._pending or _switches.are_heard
        ):
            self._on_at_entry = False
            self._batches += 1
            return ()
        findings = self._flush(now) if self._pending or _switches.are_heard else []
        self._on_at_entry = torch.is_grad_enabled()
        if self._on_at_entry and "exit" not in self._reported and self._is_new("entry"):
            fact = f"grad mode is on when the step begins, {_EXPECTED}"
            violation = _Violation(fact, "Remove `set_grad_enabled(True)`.")
            violation.site = self.lines.get("grad mode")
            findings.append(_finding(violation, now))
        self._batches += 1
        if now.batch < _CLOSELY:
            self._before = self._attributes()
        if not self._entered:
            self._entered = True
            # What hooks did not empty until the first step holds the last evaluation's tensors.
            before = self._before or {}
            sizes = _sizes(before).items()
            kept_since = [k for k, size in sizes if size == self._sizes.get(k)]
            self._left_over = {k: before[k] for k in kept_since}
        return findings

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        if now.thinned and outputs is None and not torch.is_grad_enabled():
            return ()
        before, self._before = self._before, None
        if self._on_at_entry:
            return ()  # told when it was found; the graphs follow from it
        if torch.is_grad_enabled() and self._is_new("exit"):
            fact = f"left grad mode on after the step, {_EXPECTED}"
            self._pending.append(
                _Violation(
                    fact,
                    "Write `with torch.enable_grad():` around the lines that need it.",
                )
            )
        elif outputs is not None and _has_graph(outputs) and self._is_new("graph"):
            fact = "returned an autograd graph, expected tensors without `grad_fn`"
            self._pending.append(_Violation(fact, "Return `.detach()`ed tensors."))
        if before is not None:
            for attribute, paths in self._attributes().items():
                known = {k.ref() for k in before.get(attribute, {}).values()}
                new = [k for k in paths.values() if k.graph and k.ref() not in known]
                if new and self._is_new(attribute):
                    self._pending.append(self._keeps(attribute))
        return ()

    def ends(self, now: Moment) -> Iterable[Finding]:
        """Grad mode that a hook after the last step left on: later hooks record graphs."""
        if not torch.is_grad_enabled() or self._on_at_entry or not self._is_new("end"):
            return ()
        if self._reported & {"entry", "exit"}:
            return ()
        fact = f"grad mode was left on by a hook after the last step, {_EXPECTED}"
        violation = _Violation(
            fact,
            "Write `with torch.enable_grad():` around the lines that need it.",
            certain=False,
        )
        violation.site = self.lines.get("grad mode") or self._left_on
        self._left_on = violation.site
        return [_finding(violation, now)]

    def stop(self, now: Moment, error: BaseException | None) -> Iterable[Finding]:
        self._before = None
        findings = self._flush(now)
        if error is not None:
            return findings
        attributes = self._attributes()
        sizes = _sizes(attributes)
        self._grown |= {
            attribute: self.lines[attribute] for attribute in sizes.keys() & self.lines
        }
        for attribute, left_over in self._left_over.items():
            n = sizes.get(attribute, 0)
            accumulates = self._accumulates(attribute, left_over, attributes)
            if (
                accumulates
                and attribute not in self._accumulating
                and self._is_new(attribute)
            ):
                self._accumulating.add(attribute)
                findings.append(_finding(self._hoards(attribute, n), now))
        self._sizes = sizes
        self._longest = max(self._longest, self._batches)
        return findings

    # a witness (see `checks.check.Check`)

    def tripped(self) -> bool:
        """Whether the step that just ended left grad mode on, or a graph."""
        return bool(self._pending)

    def watch(self, now: Moment) -> Subscriber:
        """Sees the first operator that records a graph, and who switched grad mode on."""
        _switches.start()
        return RecordedOp()

    def saw(
        self, now: Moment, seen: Subscriber | None, look: Look | None
    ) -> Iterable[Finding]:
        """Name the line, and find a graph that was recorded and thrown away."""
        _switches.stop()
        first = None
        if isinstance(seen, RecordedOp):
            first = seen.first
        if first is None and isinstance(seen, RecordedOp) and seen.allowed:
            self._pending.clear()
        if first is None or self._on_at_entry:
            return self._flush(now)
        consumed = isinstance(seen, RecordedOp) and seen.consumed
        if not self._pending and not consumed and self._is_new("graph"):
            fact = f"recorded an autograd graph, {_EXPECTED}"
            self._pending.append(
                _Violation(fact, "Remove the `enable_grad` around it.")
            )
        for violation in self._pending:
            violation.site = first.site
            if violation.subject is None:
                violation.subject, violation.kind = self._name(first.module)
        return self._flush(now)

    # how findings are made

    def _is_new(self, what: str) -> bool:
        if what in self._reported:
            return False
        self._reported.add(what)
        return True

    def _flush(self, now: Moment) -> list[Finding]:
        _switches.stop()
        violations, self._pending = self._pending, []
        return [_finding(violation, now) for violation in violations]

    def _held(self) -> Inventory:
        assert self._inventory is not None, "open() comes first"
        return self._inventory

    def _attributes(self) -> dict[str, dict[str, Kept]]:
        self._held().refresh()
        return kept(self._held())

    def _name(self, module: nn.Module | None) -> tuple[str | None, str | None]:
        modules = self._held().modules
        if module is None:  # not in any module's call: the step itself
            return "", type(modules[""]).__name__
        for name, known in modules.items():
            if known is module:
                return name, type(module).__name__
        return None, type(module).__name__

    def _accumulates(
        self,
        attribute: str,
        left_over: dict[str, Kept],
        attributes: dict[str, dict[str, Kept]],
    ) -> bool:
        """Whether an attribute still holds what it held before this evaluation, and as much again.

        A cache fills up: it takes less than one tensor a batch, and less in each evaluation. What
        collects samples takes one a batch, or as many in this evaluation as in the one before.
        """
        paths = attributes.get(attribute, {})
        held = {k.ref() for k in paths.values() if k.sized}
        stays = all(k.ref() in held for k in left_over.values() if k.sized)
        more = _sizes({attribute: paths}).get(attribute, 0) - sum(
            k.sized for path, k in left_over.items() if path
        )
        before = None
        if self._batches <= self._longest:
            before = self._growths.get(attribute)
        self._growths[attribute] = more
        if more <= 0 or not stays:
            return False
        return more >= self._batches or (before is not None and more >= before > 0)

    def _keeps(self, attribute: str) -> _Violation:
        fact = (
            "keeps an autograd graph after the step, expected tensors without `grad_fn`"
        )
        remedy = "Keep `.detach()`ed tensors."
        return _Violation(fact, remedy, attribute, self._owner(attribute))

    def _hoards(self, attribute: str, n: int) -> _Violation:
        fact = f"keeps {n} tensors of more than one evaluation, expected to be emptied between them"
        remedy = f"Call `self.{attribute}.clear()` in `on_validation_epoch_start`."
        site = self._grown.get(attribute)
        return _Violation(
            fact, remedy, attribute, self._owner(attribute), certain=False, site=site
        )

    def _owner(self, attribute: str) -> str:
        module = self._held().modules.get(attribute.rpartition(".")[0])
        if module is None:
            return "attribute"
        return f"attribute of {type(module).__name__}"


@dataclass
class _Violation:
    fact: str
    remedy: str
    subject: str | None = None
    kind: str | None = None
    certain: bool = True
    site: Site | None = None


def _finding(violation: _Violation, now: Moment) -> Finding:
    site = violation.site
    return Finding(
        check="grad",
        stage=now.stage,
        fact=violation.fact,
        remedy=violation.remedy,
        subject=violation.subject,
        subject_type=violation.kind,
        location=site.location if site else None,
        expression=site.expression if site else None,
        function=site.function if site else None,
        leads="subject",
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=violation.certain,
    )


def _sizes(attributes: dict[str, dict[str, Kept]]) -> dict[str, int]:
    """How many tensors with a dimension each container holds; a history of scalars is none."""
    sizes = {}
    for attribute, paths in attributes.items():
        size = sum(tensor.sized for path, tensor in paths.items() if path)
        if size:
            sizes[attribute] = size
    return sizes


# the operators of a step


@dataclass(frozen=True)
class _At:
    site: Site | None
    module: nn.Module | None


class RecordedOp(Subscriber):
    """The first operator of a step that records an autograd graph.

    Attributes:
        first: Where grad mode was switched on for it, else where it stands; None if there is none.
        consumed: Whether the step ran backward through a graph.
        allowed: Whether it records one inside ``allow("grad")``.
    """

    def __init__(self) -> None:
        self.first: _At | None = None
        self.consumed = False
        self.allowed = False
        # A replay of a step that left grad mode on begins with it on: wait for the switch.
        self._on_at_entry = torch.is_grad_enabled()

    def before(self, op: Op) -> None:
        if torch._C._current_graph_task_id() != -1:
            self.consumed = True
            return
        if (
            self.first is not None
            or not torch.is_grad_enabled()
            or op.name in _NO_GRAPH
        ):
            return
        if torch.is_inference_mode_enabled():
            return
        if not any(
            t.requires_grad for t in tensors_in([*op.args, *op.kwargs.values()])
        ):
            return
        if allowed("grad"):
            self.allowed = True
            return
        if self._on_at_entry and _switches.last is None:
            return
        # torchmetrics switches grad mode on inside `forward`, for networks of its own too.
        if not any(is_metric(module) for module in op.modules()):
            self.first = _switches.last or _At(op.site, op.module)


# A cast alone: autocast casts weights for its cache in grad mode, whatever mode it finds.
_NO_GRAPH = frozenset(
    {"detach", "detach_", "zeros_like", "ones_like", "empty_like", "_to_copy"}
)


def _has_graph(outputs: Any) -> bool:
    return any(t.grad_fn is not None for t in tensors(outputs))


class _Switches:
    """Who last switched grad mode on, known only while a step is shown.

    The contexts are wrapped where Dynamo does not look: it knows them by their class.

    Attributes:
        last: Where.
        are_heard: Whether a step is shown, or was and is not over.
    """

    def __init__(self) -> None:
        self.last: _At | None = None
        self.are_heard = False
        self._wraps: list[tuple[type, str, Any]] = []

    def start(self) -> None:
        self.stop()
        self.last = None
        self.are_heard = True
        self._wrap(torch.enable_grad, "__enter__", lambda context, args: True)
        self._wrap(
            torch.set_grad_enabled, "__init__", lambda context, args: bool(args[0])
        )
        self._wrap(
            torch.set_grad_enabled, "__enter__", lambda context, args: context.mode
        )
        self._wrap(
            torch.inference_mode, "__enter__", lambda context, args: not context.mode
        )

    def stop(self) -> None:
        for cls, method, original in self._wraps:
            setattr(cls, method, original)
        self._wraps = []
        self.are_heard = False

    def _wrap(
        self, cls: type, method: str, switches_on: Callable[[Any, Any], bool]
    ) -> None:
        original = cls.__dict__[method]

        @functools.wraps(original)
        def wrapped(context: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(context, *args, **kwargs)
            caller = sys._getframe(1)
            # no_grad puts back what was
            restores = caller.f_code.co_filename == _GRAD_MODE
            if switches_on(context, args or tuple(kwargs.values())) and not restores:
                # Around a decorated function, the line is one of the function's own.
                decorates = caller.f_code.co_filename == _CONTEXTLIB
                here = Op(None, (), {})
                self.last = None if decorates else _At(here.site, here.module)
            return result

        self._wraps.append((cls, method, original))
        setattr(cls, method, wrapped)


_GRAD_MODE = torch.autograd.grad_mode.__file__
_CONTEXTLIB = torch.utils._contextlib.__file__
_switches = _Switches()
