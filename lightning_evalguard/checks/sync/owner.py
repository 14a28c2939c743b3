"""Whose wait it is: the nearest owner outside torch, and the user's line that led there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum, auto
from types import FrameType

from torch import nn

from lightning_evalguard.instruments.source import expression_of, owner_of, site_of
from lightning_evalguard.instruments.variables import variable
from lightning_evalguard.paths import short_path

# The hooks that Lightning calls for every batch; what happens in the others is not a cost a step.
_EVERY_BATCH = re.compile("batch|step|backward|zero_grad|gradient|^forward$")
_BATCH_LOOPS = frozenset({"advance", "_evaluation_step", "_predict_step"})
_COMPILERS = (
    os.path.join("_dynamo", "convert_frame"),
    os.path.join("_inductor", "compile_fx"),
    os.path.join("_subclasses", "fake_tensor"),
)
_DATA = os.path.join("utils", "data")
_HOOK_CALLS = os.path.join("trainer", "call.py")
_OPTIMIZATION = os.sep + os.path.join("optimization", "")
# torchmetrics: another code on a device
_CPU_BRANCH = frozenset({"normalize_logits_if_needed"})
_LISTENING = (
    "overrides.py", "host_or_device.py", "listeners.py", "dispatch.py", "events.py", "arrays.py",
    "patch.py",
)  # fmt: skip
_LOOKING = ("replay.py", "lines.py")
_NAMES = {
    "pytorch_lightning": "lightning",
    "lightning_fabric": "lightning",
    "self": "lightning_evalguard",
}
_LONGEST = 80  # characters of an expression


@dataclass(frozen=True)
class Where:
    """Whose wait it is, read off the Python stack.

    Attributes:
        location: Of the user's line, else of the owner's.
        expression: What stands there.
        function: In which it stands.
        owner: ``user``, the package whose code waits, or ``autograd``.
        via: The owner's own line, where the user's is another.
        inside: The file of torch that the owner called.
        hook: Lightning's, in which it happens.
        setting: Of a torchmetrics object, that may avoid it.
        classifies: Whether that is an object whose counts the matrix has too.
    """

    location: str
    expression: str
    function: str
    owner: str
    via: str
    inside: str
    hook: str
    setting: str = ""
    classifies: bool = False

    @property
    def is_a_cost_of_steps(self) -> bool:
        """Whether it happens with each batch."""
        return not self.hook or _EVERY_BATCH.search(self.hook) is not None


def where_of(frame: FrameType | None, on_cpu: bool) -> Where | None:
    """Whose wait it is, from the Python frame that called the operator.

    None where it is not a cost of the step: a data loader's work, a compilation, what the guard's
    checks look at, and, on the CPU, the optimizer's step counter, which lives on the host.
    """
    stack = _Stack(on_cpu)
    while frame is not None:
        verdict = stack.read(frame)
        if verdict is _Verdict.FREE:
            return None
        if verdict is _Verdict.END:
            break
        frame = frame.f_back
    return stack.where()


class _Verdict(Enum):
    """What a frame says of a wait: go on outward, it is known now, or it costs the step nothing."""

    ON = auto()
    END = auto()
    FREE = auto()


class _Stack:
    """What the frames say, from the operator outward; each owner's frames by a rule of its own.

    Args:
        on_cpu: Whether nothing waits, and it is found out what would.
    """

    def __init__(self, on_cpu: bool) -> None:
        self._on_cpu = on_cpu
        self._near: FrameType | None = None
        self._user: FrameType | None = None
        self._is_autograds = False
        self._inside = self._hook = ""

    def read(self, frame: FrameType) -> _Verdict:
        """Take up one frame."""
        owner = owner_of(frame.f_code.co_filename)
        if owner in _RULES:
            return _RULES[owner](self, frame)
        if self._near is None and self._on_cpu and frame.f_code.co_name in _CPU_BRANCH:
            return _Verdict.FREE
        self._near = self._near or frame
        if self._user is None and owner == "user":
            self._user = frame
        return _Verdict.ON

    def _standard(self, frame: FrameType) -> _Verdict:
        return _Verdict.ON

    def _torch(self, frame: FrameType) -> _Verdict:
        file = frame.f_code.co_filename.rpartition(f"{os.sep}torch{os.sep}")[2]
        if file.startswith(_COMPILERS):
            return _Verdict.FREE
        if self._on_cpu and file.startswith(_DATA):
            return _Verdict.FREE
        if self._near is not None:
            return _Verdict.ON
        if self._on_cpu and file.startswith("optim"):
            return _Verdict.FREE
        self._inside = file
        self._is_autograds |= frame.f_code.co_name == "_engine_run_backward"
        return _Verdict.ON

    def _lightning(self, frame: FrameType) -> _Verdict:
        file = frame.f_code.co_filename
        if file.endswith(_HOOK_CALLS):
            self._hook = variable(frame, "hook_name", "outside")
            return _Verdict.END
        in_loops = f"{os.sep}loops{os.sep}" in file
        if in_loops and self._on_cpu and file.endswith("fetchers.py"):
            return _Verdict.FREE
        of_batches = _OPTIMIZATION in file or frame.f_code.co_name in _BATCH_LOOPS
        if in_loops and not of_batches:
            return _Verdict.FREE
        self._near = self._near or frame
        if in_loops:
            return _Verdict.END
        return _Verdict.ON

    def _ours(self, frame: FrameType) -> _Verdict:
        file = frame.f_code.co_filename
        if file.endswith(_LOOKING):
            return _Verdict.FREE
        if self._near is None:
            if not file.endswith(_LISTENING):
                self._near = frame
            return _Verdict.ON
        ours = owner_of(self._near.f_code.co_filename) == "self"
        if ours and file.endswith("guard.py"):
            return _Verdict.FREE
        return _Verdict.ON

    def where(self) -> Where:
        """What all frames say together."""
        near = self._near
        user = self._user
        if near is None:
            owner = "autograd"
            text = "the backward pass"
            return Where("", text, "", owner, "", self._inside, self._hook)
        shown = site_of(user or near)
        package = owner_of(near.f_code.co_filename)
        owner = "autograd"
        if not self._is_autograds:
            owner = _NAMES.get(package, package)
        via = "" if user is None or near is user else _library_place(near)
        metric = _metric_of(near) if owner == "torchmetrics" else ("", False)
        text = _shown(user or near, shown.expression) or shown.function
        location = shown.location
        function = shown.function
        return Where(
            location, text, function, owner, via, self._inside, self._hook, *metric
        )


# Not held by the stack: a circle of references would keep its frames, and with them a graph.
_RULES = {
    "torch": _Stack._torch,
    "lightning": _Stack._lightning,
    "pytorch_lightning": _Stack._lightning,
    "self": _Stack._ours,
    "stdlib": _Stack._standard,
}


def _shown(frame: FrameType, statement: str) -> str:
    text = expression_of(frame)
    if text.startswith(("if ", "elif ", "while ")):
        # Python 3.11 takes the whole statement for its test
        text = statement.rstrip(":")
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 3]}..."


def _library_place(frame: FrameType) -> str:
    return f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno}"


def _metric_of(frame: FrameType | None) -> tuple[str, bool]:
    """What the torchmetrics object that waits could be made with, and whether it classifies."""
    aggregates = (
        frame is not None and frame.f_code.co_name == "_cast_and_nan_check_input"
    )
    while frame is not None and owner_of(frame.f_code.co_filename) == "torchmetrics":
        metric = variable(frame, "self")
        if isinstance(metric, nn.Module) and frame.f_code.co_name in (
            "update",
            "compute",
        ):
            return _setting_of(metric, aggregates), _classifies(metric)
        frame = frame.f_back
    return "", False


def _setting_of(metric: nn.Module, aggregates: bool) -> str:
    settings = vars(metric)
    if aggregates and "nan_strategy" in settings:
        return 'nan_strategy="disable"'
    if settings.get("validate_args") is True:
        return "validate_args=False"
    return ""


def _classifies(metric: nn.Module) -> bool:
    return any(
        "torchmetrics.classification" in c.__module__ for c in type(metric).mro()
    )


__all__ = ["Where", "where_of"]
