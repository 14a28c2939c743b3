"""Imports run one way, and the package needs torch alone to be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_evalguard

PACKAGE = Path(lightning_evalguard.__file__).parent
# A room may import from the rooms before its own, and within itself.
# fmt: off
FLOORS = [
    {"checks/registry", "stages", "cells", "hints", "instruments/source"},
    {"screen", "reasons"},
    {"paths"},
    {"report", "allow"},
    {"policies", "agreement"},
    {
        "instruments",
        "ranks",
        "record/files",
        "record/plain",
        "record/ledger",
        "record/secrets",
        "record/shape",
    },
    {"model", "data"},
    {"confusion"},
    {"record"},
    {"checks/check"},
    {"checks"},
    {"audit", "pace", "rulings"},
    {"guard"},
    {"keywords"},
    {"views"},
    {
        "plain/models",
        "plain/frames",
        "plain/tensors",
        "plain/scored",
        "plain/watched",
        "plain/window",
        "plain/rules",
    },
    {"plain/asked", "plain/comparisons", "plain/matrix", "plain/measures", "plain/recorder"},
    {"plain/gathered", "plain/counted"},
    {"trainer", "evaluation"},
    {"callback", "huggingface"},
    {"plain"},
    {"trainer/attached"},
    {"attach", "testing"},
    {"ci"},
    {"__init__", "__main__"},
]
# fmt: on
STDLIB_ONLY = {
    "report",
    "reasons",
    "stages",
    "cells",
    "hints",
    "paths",
    "allow",
    "attach",
    "checks/registry",
    "instruments/source",
    "instruments/patch",
    "instruments/tracebacks",
    "record/files",
    "record/plain",
    "record/ledger",
    "record/secrets",
    "record/shape",
}  # fmt: skip
UPWARDS = {
    # when Report.load is called
    "report": {"confusion/result", "record/shape", "views/page"},
    "attach": {"trainer/attached"},
    "confusion/result": {"confusion/figure", "views/page"},  # plot(), when it is called
}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """``checks/modes/check`` for the file of that name; a folder's own file has its name."""
    return (
        path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
    )


def imports(tree: ast.AST) -> set[str]:
    """What a file imports: ``torch``, and ``lightning_evalguard.checks.check`` for its own."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            folder = PACKAGE.parent / node.module.replace(".", "/")
            names = {alias.name for alias in node.names}
            files = {
                n
                for n in names
                if (folder / n).is_dir() or (folder / f"{n}.py").is_file()
            }
            imported |= {f"{node.module}.{name}" for name in files}
            if names - files:
                imported.add(node.module)
    return imported


def inner(tree: ast.AST) -> set[str]:
    """The files of this package that a file imports, as `name_of` has them."""
    ours = "lightning_evalguard."
    return {
        n.removeprefix(ours).replace(".", "/")
        for n in imports(tree)
        if n.startswith(ours)
    }


def floor(name: str) -> int:
    """The floor of a file: of its own name, else of the folder that it lies in."""
    while name:
        for number, rooms in enumerate(FLOORS):
            if name in rooms:
                return number
        name = name.rpartition("/")[0]
    raise AssertionError("a file without a floor")


def room(name: str) -> str:
    """The room of a file: a rule of its own within the checks, else the folder or file."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == "checks" else parts[0]


def upward(name: str, tree: ast.AST) -> set[str]:
    """The imports of a file that do not lead downward."""
    found = set()
    for other in inner(tree) - UPWARDS.get(name, set()):
        below = floor(other) < floor(name)
        beside = floor(other) == floor(name) and room(other) == room(name)
        if not (below or beside):
            found.add(other)
    return found


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_lead_downward_and_rules_know_no_sibling(path: Path) -> None:
    if name_of(path) != "__init__":
        assert upward(name_of(path), parsed(path)) == set()


def test_the_test_of_direction_can_fail() -> None:
    up = ast.parse("from lightning_evalguard.guard import Guard")
    assert upward("checks/modes/check", up) == {"guard"}
    sibling = ast.parse("from lightning_evalguard.checks.grad import GradCheck")
    assert upward("checks/modes/check", sibling) == {"checks/grad"}
    within = ast.parse("from lightning_evalguard.checks.modes import training")
    assert upward("checks/modes/check", within) == set()


def circles(arrows: dict[str, set[str]]) -> set[str]:
    """The files from which imports lead back to themselves."""
    circular = set()
    for start in arrows:
        reached: set[str] = set()
        ahead = set(arrows[start])
        while ahead:
            name = ahead.pop()
            reached.add(name)
            ahead |= arrows.get(name, set()) - reached
        if start in reached:
            circular.add(start)
    return circular


def test_no_circle_of_imports() -> None:
    """Imports for annotations alone count too."""
    arrows = {
        n: inner(parsed(p)) - UPWARDS.get(n, set())
        for p in FILES
        if (n := name_of(p)) != "__init__"
    }
    assert circles(arrows) == set()


def test_the_test_for_circles_can_fail() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == {"a", "b", "c"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_one_file_imports_lightning_and_one_transformers(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(parsed(path))}
    lightning = roots & {"lightning", "pytorch_lightning"}
    assert name_of(path) == "trainer/lightning" or not lightning
    assert name_of(path) == "huggingface/callback" or "transformers" not in roots
    if name_of(path) in STDLIB_ONLY:
        assert roots <= {*sys.stdlib_module_names, "lightning_evalguard"}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )


# Everything but torch and what torch itself needs is made impossible to import.
_WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning", "pytorch_lightning", "torchmetrics", "matplotlib",
                                  "transformers"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
"""


def test_the_package_works_with_torch_alone() -> None:
    done = run(
        _WITHOUT + "import torch, lightning_evalguard as e\n"
        "with e.evaluating(torch.nn.Dropout()) as report: pass\n"
        "print(report)"
    )
    assert done.stdout == "checked: 1 evaluation, 1 module\n", done.stderr


def test_the_test_before_can_fail() -> None:
    done = run(_WITHOUT + "import lightning_evalguard as e\ne.EvalGuard")
    assert "ImportError: " in done.stderr


def test_importing_loads_neither_lightning_nor_torchmetrics() -> None:
    done = run(
        "import sys, lightning_evalguard\n"
        "print(sorted({'lightning', 'torchmetrics', 'matplotlib'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr
