"""Imports run one way, and the package needs torch alone to be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_evalguard

PACKAGE = Path(lightning_evalguard.__file__).parent
# Each file may import from the layers before its own.
LAYERS = [
    {"report", "_source", "_allow", "_patch", "scores", "_files", "_plain", "_highest"},
    {
        "_tree",
        "_dispatch",
        "_lines",
        "_loaders",
        "_ranks",
        "_content",
        "result",
        "ledger",
    },
    {"_state", "_rollback", "_waits", "checks", "confusion", "plot"},
    {"_debug_mode", "_samples", "_tally", "_writes", "_hidden", "_replay", "sources", "sinks"},
    {"taps"},
    {"guard", "recorder", "_lightning"},
    {"training_score", "record"},
    {"callback", "_sarif", "_show"},
    {"_attached", "_fixture", "_page"},
    {"_factory", "_pytest"},
    {"_runner"},
    {"__init__", "__main__"},
]
CHECKS_SEE = 3  # a check's file may import from the layers up to this one
STDLIB_ONLY = {"report", "_source", "_allow", "_patch", "_files", "_plain", "ledger", "_factory"}
UPWARDS = {"report": {"result", "checks"}}  # Report.load, when it is called


def imports(path: Path) -> set[str]:
    """Top-level names of what a file imports, ``.name`` for a file of this package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "lightning_evalguard":
                found |= {f"lightning_evalguard.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def inner(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("lightning_evalguard.")}


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.stem)
def test_a_file_imports_only_from_the_layers_before_it(path: Path) -> None:
    for name in inner(path):
        if name in lightning_evalguard.__all__ or name in UPWARDS.get(path.stem, ()):
            continue
        assert layer(name) < layer(path.stem), name


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("checks/*.py")), ids=lambda p: p.stem)
def test_a_check_imports_no_sibling_and_nothing_above(path: Path) -> None:
    for name in inner(path) - {"checks"}:
        assert layer(name) <= CHECKS_SEE, name
    siblings = {n for n in imports(path) if n.startswith("lightning_evalguard.checks.")}
    assert siblings == set()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_only_one_file_imports_lightning(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert path.stem == "_lightning" or not roots & {"lightning", "pytorch_lightning"}
    if path.stem in STDLIB_ONLY:
        assert roots <= {*sys.stdlib_module_names, "lightning_evalguard"}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


# Everything but torch and what torch itself needs is made impossible to import.
_WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning", "pytorch_lightning", "torchmetrics", "matplotlib"}:
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
