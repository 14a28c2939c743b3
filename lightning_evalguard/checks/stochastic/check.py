"""Does an evaluation step draw random numbers?"""

from __future__ import annotations

import linecache
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.instruments.dispatch import (
    ModuleNames,
    Op,
    Subscriber,
    modules_around,
    tensors_in,
)
from lightning_evalguard.instruments.generators import (
    Generators,
    generator_state,
    is_generator,
    numpy_state,
    same_state,
    torch_generators,
)
from lightning_evalguard.instruments.replay import Look, replaying
from lightning_evalguard.instruments.rollback import things
from lightning_evalguard.instruments.source import LIBRARIES, Site, owner_of
from lightning_evalguard.model.attributes import where_hidden
from lightning_evalguard.report import Finding

# python's and numpy's states take ten times as long to read as torch's
_HOST_FIRST, _HOST_EVERY = 3, 16


class StochasticCheck(Check):
    """The `stochastic` check: the shared generators around every step, the operators in a witness.

    Dropout that is active is certain. Sampling by any other operation is a suspicion: a VAE, a
    diffusion model or a bootstrap means it.
    """

    name = "stochastic"

    def __init__(self) -> None:
        self._root: nn.Module | None = None
        self._batches = 0
        self._moved: list[str] = []
        self._explained: set[str] = set()
        self._private: list[tuple[Any, Any]] = []
        self._at_move: Generators | None = None
        self.before: Generators | None = None

    def open(self, root: nn.Module, now: Moment) -> Iterable[Finding]:
        self._root = root
        self._batches = 0
        self._private = [(t, None) for t in things([root]) if is_generator(type(t))]
        self._explained.clear()
        return ()

    def close(self, now: Moment) -> Iterable[Finding]:
        self._root = self.before = None
        self._private = []
        return ()

    def start(self, now: Moment) -> Iterable[Finding]:
        self._batches = 0
        return ()

    def before_step(self, now: Moment, args: tuple[Any, ...]) -> Iterable[Finding]:
        self._moved, self.before = [], None
        if now.stage not in self._explained:
            host = self._batches < _HOST_FIRST or self._batches % _HOST_EVERY == 0
            self.before = Generators.capture(host=host)
        self._batches += 1
        return ()

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        before = self.before
        if before is not None:
            self._moved = Generators.capture(host=before.python is not None).moved(before)
            self._moved += self._private_moved()
        return ()

    def _private_moved(self) -> list[str]:
        """Whether a generator that the model holds ends each step elsewhere than the last.

        One that is seeded anew in each step ends where it ended before.
        """
        if not self._private:
            return []
        states = [(g, generator_state(g)) for g, _ in self._private]
        last, self._private = self._private, states
        same = all(
            a is None or same_state(a, b) for (_, a), (_, b) in zip(last, states, strict=True)
        )
        return [] if same else ["private"]

    def before_move(self, now: Moment) -> Subscriber | None:
        """A batch is about to be moved to the device, and augmented there; the first is watched."""
        self._at_move = None
        if "move" in self._explained:
            return None
        self._at_move = Generators.capture(host=False)
        return Draws(self._tree()) if self._batches == 0 else None

    def after_move(self, now: Moment, seen: Subscriber | None) -> Iterable[Finding]:
        """The batch was moved: say what was drawn for it."""
        if self._at_move is None:
            return ()
        moved = Generators.capture(host=False).moved(self._at_move)
        if not moved:
            return ()
        self._explained.add("move")
        if isinstance(seen, Draws):
            return _findings(now, seen.draws)
        return [_moved_somewhere(now, "torch", "moving the batch to the device")]

    def tripped(self) -> bool:
        """Whether a shared generator moved in the step that just ended."""
        return bool(self._moved)

    def watch(self, now: Moment) -> Subscriber:
        """The draws of the step, and in a replay what every operator gave."""
        return Draws(self._tree())

    def saw(self, now: Moment, seen: Subscriber | None, look: Look | None) -> Iterable[Finding]:
        """Name what was drawn, once for each place."""
        moved, self._moved = self._moved, []
        findings = self._explain(now, seen, moved, look)
        if moved or findings:
            # One explanation a kind of run: what is meant, and allowed, fires at every batch.
            self._explained.update({now.stage} | _SAME_KIND.get(now.stage, set()))
        return findings

    def _explain(
        self, now: Moment, seen: Subscriber | None, moved: list[str], look: Look | None
    ) -> list[Finding]:
        if not isinstance(seen, Draws):
            return [_moved_somewhere(now, which) for which in moved]
        # Watched alone and no generator moved: what was drawn was drawn from a fork or a private
        # generator, most often one seeded for it.
        draws = [d for d in seen.draws if d.dropout or (moved and not d.private)]
        others: list[Finding] = []
        if look is not None:
            draws, others = self._run_again(now, seen, moved, look)
        else:
            others = [_moved_somewhere(now, w) for w in moved if w != "torch" or not seen.shared]
        return [*_findings(now, draws), *others]

    def _tree(self) -> nn.Module:
        assert self._root is not None, "open() comes first"
        return self._root

    def _run_again(
        self, now: Moment, seen: Draws, moved: list[str], look: Look
    ) -> tuple[list[Draw], list[Finding]]:
        """What one replay cannot tell: which draws are fixed, and what moves by itself."""
        others: list[Finding] = []
        second = Draws(self._tree())
        same = look.again(second).error is None
        private = {d.index for d in seen.draws if d.private}
        fixed = _equal_at(seen, second, private) if same else private
        differs = first_difference(seen, second) if same else None
        if differs is not None and all(d.index != differs for d in seen.draws):
            at = _At(self._tree(), differs)
            look.again(at)
            if at.place is not None:
                others.append(_differing(now, at.place))
        sampled = {d.index for d in seen.draws if not d.dropout} - private
        if sampled:
            reseeded = Draws(self._tree())
            if look.again(reseeded, seed=_OTHER_SEED).error is None:
                fixed |= _equal_at(seen, reseeded, sampled)
        draws = [d for d in seen.draws if d.index not in fixed]
        by_lines = [w for w in moved if w in _STATES and (w != "torch" or seen.shared <= fixed)]
        if by_lines:
            others += self._name_lines(now, by_lines, look)
        return draws, others

    def _name_lines(self, now: Moment, moved: list[str], look: Look) -> list[Finding]:
        """The lines that moved a generator without an operator, by running them one by one."""
        lines = _Lines(moved)
        with lines:
            look.again()
        names = ModuleNames(self._tree())
        found = []
        for which, site, module in lines.found:
            subject, module = names.nearest([module] if module is not None else [])
            fact = f"`{site.expression}` moved {_WORDS[which]} in eval mode"
            kind = type(module).__name__
            remedy = _DRAW_IN_TRAINING
            found.append(_finding(now, fact, remedy, subject, kind, site, certain=False))
        named = {which for which, *_ in lines.found} | lines.allowed
        return found + [_moved_somewhere(now, which) for which in moved if which not in named]


_SAME_KIND = {"sanity_check": {"validate"}, "validate": {"sanity_check"}}
_OTHER_SEED = 2_718_281_828


# the operators


@dataclass
class Draw:
    """One operator that drew random numbers, where it stands, and what mends it.

    Attributes:
        index: Of the operator in the step.
        op: Its name.
        dropout: Whether it is dropout or a kin of it.
        private: Whether it drew from a generator of its own.
        site: The nearest place outside the libraries.
        subject: Qualified name of the module, or how to write where an unregistered one hides.
        module: Its class.
        mend: What mends the module, where that mends the draw.
    """

    index: int
    op: str
    dropout: bool
    private: bool
    site: Site | None
    subject: str
    module: type[nn.Module]
    mend: str = ""


class Draws(Subscriber):
    """Every draw of a step that is not allowed, and in a replay a sample of what each op gave."""

    def __init__(self, root: nn.Module) -> None:
        self.draws: list[Draw] = []
        self.shared: set[int] = set()  # all operators that drew from a shared generator
        self.samples: list[Sample] = []
        self._root = root
        self._names = ModuleNames(root)
        self._mask: tuple[Draw, Any, Any] | None = None

    def after(self, op: Op) -> None:
        if self._mask is not None:
            draw, mask, keep = self._mask
            self._mask = None
            draw.dropout |= _rescales(op, mask, keep)
        meant = allowed("stochastic")
        if replaying():
            self.samples.append(Sample.of(op, meant))
        if not op.draws:
            return
        if not _is_private(op):
            self.shared.add(op.index)
        # A module in train mode is for the `modes` check to find; what it draws follows from that.
        inner = op.module
        if meant or (inner is not None and inner in self._names and inner.training):
            return
        draw = place(op, self._root, self._names)
        self.draws.append(draw)
        if op.name == "bernoulli_":
            self._mask = (draw, op.out, op.arguments.get("p"))


_FAMILY = re.compile(r"dropout|rrelu|attention|^_?(lstm|gru|rnn)|_rnn")
_DROPS = re.compile(r"drop_?path|stochastic_?depth|drop_?block|drop_?connect", re.IGNORECASE)


def _is_dropout(op: Op, module: nn.Module) -> bool:
    """Whether a draw is dropout or a kin of it; its operator may be a plain `bernoulli_`."""
    if _FAMILY.search(op.name):
        return True
    for frame in op.stack():
        owner = owner_of(frame.f_code.co_filename)
        if _DROPS.search(frame.f_code.co_name):
            return True
        if owner != "torch":
            break
        if op.name.startswith("bernoulli") and "drop" in frame.f_code.co_name:
            return True
    return bool(_DROPS.search(type(module).__name__))


def _rescales(op: Op, mask: Any, keep: Any) -> bool:
    """Whether `op` divides a fresh mask by its keep probability, as ATen's dropout does."""
    return (
        op.name in ("div_", "div")
        and bool(op.args)
        and op.args[0] is mask
        and isinstance(keep, float)
        and op.args[1:2] == (keep,)
    )


def _is_private(op: Op) -> bool:
    generator = op.kwargs.get("generator")
    return generator is not None and all(generator is not g for _, g in torch_generators())


def place(op: Op, root: nn.Module, names: ModuleNames) -> Draw:
    """Where a draw stands, and what mends it."""
    chain = list(op.modules())
    subject, module = names.nearest(chain)
    mend = ""
    if chain and chain[0] not in names:
        subject, mend = where_hidden(chain, root, names, op)
        module = chain[0]
    elif any(_in_init(frame) for frame in op.stack()):
        mend = "Create the module in `__init__`."
    return Draw(
        op.index,
        op.name,
        _is_dropout(op, module),
        _is_private(op),
        op.site,
        subject,
        type(module),
        mend,
    )


def _in_init(frame: FrameType) -> bool:
    return frame.f_code.co_filename == nn.init.__file__ or (
        frame.f_code.co_name in ("reset_parameters", "_reset_parameters")
    )


# what differs from one replay to the next

_SAMPLED = 64
_EMPTY = frozenset(
    {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"}
)


@dataclass
class Sample:
    """A few elements of what one operator gave."""

    func: Any
    values: Tensor | None
    meant: bool

    @classmethod
    def of(cls, op: Op, meant: bool) -> Sample:
        """Sample the first result; memory that nobody has written yet is zeroed first."""
        out = next(iter(tensors_in(op.out)), None)
        while out is not None and hasattr(out, "__tensor_flatten__"):
            # a wrapper subclass, such as DTensor: the first tensor inside speaks for it
            out = getattr(out, out.__tensor_flatten__()[0][0])
        if out is None or out.numel() == 0 or out.layout is not torch.strided or out.is_meta:
            return cls(op.func, None, meant)
        if op.name in ("resize_", "resize_as_") or getattr(op.func, "is_view", False):
            # What is new of it nobody has written yet, and a view of that shows no more.
            return cls(op.func, None, meant)
        if op.name == "set_":  # onto a storage that is about to be filled, in a deep copy
            return cls(op.func, None, meant)
        try:
            if op.name in _EMPTY:
                out.detach().zero_()
            flat = out.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLED)
            return cls(op.func, flat[::step][:_SAMPLED].clone(), meant)
        except (RuntimeError, NotImplementedError):  # a layout or a subclass without these
            return cls(op.func, None, meant)

    def differs(self, other: Sample) -> bool:
        """Whether the values differ by more than the order of a sum explains."""
        a, b = self.values, other.values
        if a is None or b is None or a.shape != b.shape:
            return False
        if not a.is_floating_point():
            return not torch.equal(a, b)
        a, b = a.double(), b.double()
        scale = float(a.nan_to_num(0.0, 0.0, 0.0).abs().max())
        return not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def first_difference(first: Draws, second: Draws) -> int | None:
    """Index of the first operator that gave other values in a replay from the same state.

    What nothing later took up is memory that nobody had written, or a time that was measured.
    """
    found = None
    last = min(len(first.samples), len(second.samples)) - 1
    for index, (a, b) in enumerate(zip(first.samples, second.samples, strict=False)):
        if a.func is not b.func or a.meant or b.meant:
            break
        if not a.differs(b):
            continue
        if found is not None:
            return found
        if a.values is not None and a.values.numel() > 1:
            found = index
            if index == last:
                return index
    return None


def _equal_at(first: Draws, second: Draws, indices: set[int]) -> set[int]:
    """Those of `indices` whose operators gave the same values in both."""
    pairs = list(zip(first.samples, second.samples, strict=False))
    return {
        i
        for i in indices
        if i < len(pairs)
        and pairs[i][0].func is pairs[i][1].func
        and pairs[i][0].values is not None
        and not pairs[i][0].differs(pairs[i][1])
    }


class _At(Subscriber):
    """The place of one operator, known by its index."""

    def __init__(self, root: nn.Module, index: int) -> None:
        self.place: Draw | None = None
        self._index = index
        self._names = ModuleNames(root)

    def after(self, op: Op) -> None:
        if op.index == self._index:
            subject, module = self._names.nearest(op.modules())
            self.place = Draw(op.index, op.name, False, True, op.site, subject, type(module))


# lines that draw without an operator


class _Lines:
    """Which lines of the user's and of libraries' code move a shared generator.

    Reads the generators at every line, so it stands around one replay only. Where a debugger or
    a coverage tool traces this thread it does nothing.
    """

    def __init__(self, which: Iterable[str]) -> None:
        self.found: list[tuple[str, Site, nn.Module | None]] = []
        self.allowed: set[str] = set()
        self._which = list(which)
        self._lines: dict[FrameType, int] = {}
        self._states: dict[str, Any] = {}
        self._tracing = False

    def __enter__(self) -> _Lines:
        if sys.gettrace() is None:
            self._tracing = True
            sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            sys.settrace(None)
        self._lines.clear()

    def _call(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if owner_of(frame.f_code.co_filename) in LIBRARIES:
            return None
        caller = frame.f_back
        while caller is not None and caller not in self._lines:
            caller = caller.f_back
        if caller is None:  # what happened above the step is no line of it
            self._states = {which: _STATES[which]() for which in self._which}
        else:
            self._look(caller, caller.f_lineno)
        self._lines[frame] = frame.f_lineno
        return self._line

    def _line(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        self._look(frame, self._lines.get(frame, frame.f_lineno))
        if event == "return":
            self._lines.pop(frame, None)
        else:
            self._lines[frame] = frame.f_lineno
        return self._line

    def _look(self, frame: FrameType, line: int) -> None:
        for which in self._which:
            state = _STATES[which]()
            if _SAME[which](state, self._states[which]):
                continue
            self._states[which] = state
            if allowed("stochastic"):
                self.allowed.add(which)
                continue
            code = frame.f_code
            text = linecache.getline(code.co_filename, line).partition("  #")[0].strip()
            owner = owner_of(code.co_filename)
            site = Site(f"{code.co_filename}:{line}", text, code.co_name, owner)
            place = (which, site, next(modules_around(frame), None))
            if place not in self.found:
                self.found.append(place)


_STATES: dict[str, Callable[[], Any]] = {
    "torch": lambda: [generator.get_state() for _, generator in torch_generators()],
    "python": random.getstate,
    "numpy": numpy_state,
}
_SAME: dict[str, Callable[[Any, Any], bool]] = {
    "torch": lambda a, b: all(torch.equal(x, y) for x, y in zip(a, b, strict=False)),
    "python": lambda a, b: bool(a == b),
    "numpy": same_state,
}


# words


def _findings(now: Moment, draws: Iterable[Draw]) -> Iterator[Finding]:
    groups: dict[tuple[Any, ...], list[Draw]] = {}
    for draw in draws:
        location = draw.site.location if draw.site is not None else draw.subject
        groups.setdefault((location, draw.module, draw.mend, draw.dropout), []).append(draw)
    for group in groups.values():
        first = replace(group[0], subject=_common([d.subject for d in group]))
        fact = f"{_said(first)} drew random numbers in eval mode"
        yield _of_draw(now, first, fact, _remedy(first), first.dropout, len(group))


def _remedy(draw: Draw) -> str:
    said = draw.site.expression if draw.site is not None else ""
    if draw.mend or not draw.dropout:
        return draw.mend or _DRAW_IN_TRAINING
    if issubclass(draw.module, torch.jit.ScriptModule):
        return "Call `.eval()` on the model before `torch.jit.trace`."
    if issubclass(draw.module, torch.fx.GraphModule):
        return "Call `.eval()` on the model before it is traced."
    if draw.site is not None and draw.site.owner != "user":
        return f"Set the dropout rate of {draw.site.owner}'s module to 0 for evaluation."
    if "scaled_dot_product" in said or ("attention" in draw.op and "multi_head" not in said):
        return "Pass dropout_p=p if self.training else 0.0."
    if draw.op.startswith("bern") and "dropout" not in said and "multi_head" not in said:
        return "Draw it only `if self.training`."
    return "Pass training=self.training."


def _said(draw: Draw) -> str:
    return f"`{draw.site.expression}`" if draw.site is not None else "the step"


def _differing(now: Moment, draw: Draw) -> Finding:
    fact = f"{_said(draw)} gave other values when the step ran again on the same batch and seeds"
    return _of_draw(now, draw, fact, _DRAW_IN_TRAINING, certain=False)


def _of_draw(
    now: Moment, draw: Draw, fact: str, remedy: str, certain: bool, count: int = 1
) -> Finding:
    place = (draw.subject, draw.module.__name__, draw.site)
    return _finding(now, fact, remedy, *place, certain, count)


def _moved_somewhere(now: Moment, which: str, what: str = "the step") -> Finding:
    return _finding(
        now,
        f"{what} moved {_WORDS[which]}",
        _DRAW_IN_TRAINING,
        "",
        None,
        None,
        certain=False,
    )


_DRAW_IN_TRAINING = "Draw only in training: `if self.training:`."
_WORDS = {
    "torch": "torch's global generator",
    "python": "python's global generator",
    "numpy": "numpy's global generator",
    "private": "a generator that the model holds",
}


def _common(subjects: list[str]) -> str:
    """The module that holds all of `subjects`."""
    shared: list[str] = []
    for level in zip(*(s.split(".") for s in subjects), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def _finding(
    now: Moment,
    fact: str,
    remedy: str,
    subject: str | None,
    subject_type: str | None,
    site: Site | None,
    certain: bool,
    count: int = 1,
) -> Finding:
    return Finding(
        check="stochastic",
        stage=now.stage,
        fact=fact,
        remedy=remedy,
        subject=subject,
        subject_type=subject_type,
        location=site.location if site is not None else None,
        expression=site.expression if site is not None else None,
        function=site.function if site is not None else None,
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        count=count,
        certain=certain,
    )
