"""Where in the user's code: the place that a finding without a line is about, the lines around."""

from __future__ import annotations

import dis
import linecache
from collections.abc import Iterator
from dataclasses import replace
from types import CodeType, FunctionType

from torch import nn

from lightning_evalguard.instruments.source import owner_of
from lightning_evalguard.record.secrets import code_without_secrets
from lightning_evalguard.report import AROUND, Finding
from lightning_evalguard.stages import spelling

_LONGEST = 160  # letters of a line that is quoted


def with_excerpt(finding: Finding) -> Finding:
    """`finding` with the lines around its own.

    They are read where it is found, by the process whose code it is: who shows a record later reads
    no file that the record names.
    """
    path, _, number = (finding.location or "").rpartition(":")
    if finding.excerpt is not None or not number.isdecimal():
        return finding
    line = int(number)
    lines = linecache.getlines(path)[max(0, line - 1 - AROUND) : line + AROUND]
    if not lines or line < 1:
        return finding
    text = "\n".join(line.rstrip()[:_LONGEST] for line in lines)
    return replace(finding, excerpt=code_without_secrets(text))


def place_about(root: nn.Module | None, finding: Finding) -> str | None:
    """``file:line`` of the `self.log`, the loader, the step or the class that it is about.

    Args:
        root: The model of the run.
        finding: One whose own location is not known.

    Returns:
        None where no code of the user's is known to hold it.
    """
    if root is None:
        return None
    try:
        return _place(root, finding)
    except Exception:  # noqa: BLE001 - a warning without a place is better than none
        return None


def _place(root: nn.Module, finding: Finding) -> str | None:
    functions = _functions(type(root))
    stage = spelling(finding.stage)
    step = _line_of(functions, stage.step) or _line_of(functions, "forward")
    if finding.check == "scores" and finding.subject:
        return _line_of_text(functions, finding.subject) or step
    if finding.check == "data":
        return _line_of(functions, f"{stage.key}_dataloader")
    if finding.check == "weights" and "optimizer" in finding.fact:
        return _line_of(functions, "configure_optimizers")
    module = _named(root, finding.subject)
    if module is not None and module is not root:
        methods = _functions(type(module))
        return _line_of(methods, "forward") or _line_of(methods, "__init__") or step
    return step


def _named(root: nn.Module, name: str | None) -> nn.Module | None:
    """The module of that qualified name, or the one that holds the tensor of that name."""
    if name is None:
        return None
    module = root
    for part in name.split("."):
        inner = module._modules.get(part)
        if inner is None:
            break
        module = inner
    return module


def _functions(of: type) -> dict[str, CodeType]:
    """The methods that a class has from the user's own files, by name."""
    found: dict[str, CodeType] = {}
    for each in of.__mro__:
        for name, value in vars(each).items():
            if isinstance(value, FunctionType) and name not in found:
                found[name] = value.__code__
    return {
        name: code
        for name, code in found.items()
        if owner_of(code.co_filename) == "user"
    }


def _line_of(functions: dict[str, CodeType], name: str) -> str | None:
    code = functions.get(name)
    if code is None:
        return None
    return f"{code.co_filename}:{code.co_firstlineno}"


def _line_of_text(functions: dict[str, CodeType], text: str) -> str | None:
    """The first line that writes `text` as a constant: the key of a `self.log`."""
    for outer in functions.values():
        for code in _nested(outer):
            if text not in code.co_consts:
                continue
            offsets = [i.offset for i in dis.get_instructions(code) if i.argval == text]
            lines = [
                line
                for at, line in dis.findlinestarts(code)
                if line and at <= offsets[0]
            ]
            if offsets and lines:
                return f"{code.co_filename}:{lines[-1]}"
            return None
    return None


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
