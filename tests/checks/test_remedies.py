"""Each remedy that can be printed is applied: the program rewritten as it says runs silent."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest

import lightning_evalguard
from models import PROGRAMS, Program
from remedies import APPLIED, ELSEWHERE, REWRITTEN, Applied, Make
from remedies import data as _data  # noqa: F401 - importing them fills `APPLIED`
from remedies import modes as _modes  # noqa: F401
from remedies import plain as _plain  # noqa: F401
from remedies import scores as _scores  # noqa: F401
from remedies import steps as _steps  # noqa: F401
from remedies import weights as _weights  # noqa: F401
from test_zoo import guarded

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:ReduceLROnPlateau conditioned on metric:RuntimeWarning"
    ),
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*GradScaler"),
]
ROOT = Path(lightning_evalguard.__file__).parent
CASES = [(template, case) for template, cases in APPLIED.items() for case in cases]
PAIRS = {
    near.__name__: (program, near)
    for program in PROGRAMS
    for near in program.near_misses
}
PAIRS |= {program.module.__name__: (program, program.module) for program in PROGRAMS}

# Where findings are made; what `--help` and SARIF say of a rule is no remedy of a finding.
_FOLDERS = ("checks", "confusion", "data", "huggingface", "model", "plain", "trainer")
_NOT = frozenset({"checks/registry.py"})
_IMPERATIVES = (
    "Add|Apply|Assign|Call|Catch|Change|Choose|Collect|Compare|Compute|Copy|Count|Create|Declare|"
    "Decide|Delete|Divide|Draw|Evaluate|Fill|Fix|Freeze|Give|Hold|Keep|Leave|Let|Load|Log|Look|"
    "Make|Name|Normalise|Pack|Pass|Print|Put|Read|Register|Remove|Replace|Reset|Return|Run|Save|"
    "Set|Share|Shuffle|Split|Start|Step|Take|Train|Update|Use|Wait|Weigh|Work|Write|The size of"
)
_REMEDY = re.compile(rf"({_IMPERATIVES})\b \S.* ", re.DOTALL)


def templates() -> Iterator[tuple[str, str]]:
    """Each text of the package that is a remedy, ``{}`` where it is filled in, and its place."""
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.partition("/")[0] not in _FOLDERS or place in _NOT:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for text, line in _texts(tree):
            if _REMEDY.match(text + " "):
                yield text, f"{place}:{line}"


def _texts(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The strings of a module that are no docstrings."""
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(node.value)  # a docstring
        if isinstance(node, ast.JoinedStr):
            left_out |= {part for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno
        elif isinstance(node, ast.JoinedStr):
            yield "".join(_part(part) for part in node.values), node.lineno


def _part(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else "{}"


def pattern_of(template: str) -> re.Pattern[str]:
    pieces = (re.escape(piece) for piece in template.split("{}"))
    return re.compile(".*".join(pieces), re.DOTALL)


@pytest.mark.parametrize(
    ("template", "case"), CASES, ids=[case.__name__ for _, case in CASES]
)
def test_a_program_gets_the_remedy_and_is_silent_once_it_is_applied(
    template: str, case: Applied, trainer: Make
) -> None:
    pl.seed_everything(0, verbose=False)
    report = case(trainer, False)
    remedies = [f.remedy for f in report.findings]
    assert any(pattern_of(template).search(remedy) for remedy in remedies), report
    pl.seed_everything(0, verbose=False)
    assert case(trainer, True).findings == []


@pytest.mark.parametrize(
    ("template", "name"), REWRITTEN.items(), ids=list(REWRITTEN.values())
)
def test_a_program_of_the_zoo_gets_the_remedy_and_is_silent_once_it_is_applied(
    template: str, name: str, trainer: Callable[..., pl.Trainer]
) -> None:
    program, near = PAIRS[name]
    pl.seed_everything(0, verbose=False)
    report, _, _ = guarded(program, program.module, trainer)
    remedies = [f.remedy for f in report.findings]
    assert any(pattern_of(template).search(remedy) for remedy in remedies), remedies
    pl.seed_everything(0, verbose=False)
    report, _, _ = guarded(program, near, trainer)
    assert report.findings == []


def test_each_remedy_of_the_package_is_applied_here() -> None:
    known = APPLIED.keys() | REWRITTEN.keys() | ELSEWHERE.keys()
    assert {text: place for text, place in templates() if text not in known} == {}


def test_no_remedy_is_applied_that_the_package_does_not_have() -> None:
    texts = {text for text, _ in templates()}
    known = APPLIED.keys() | REWRITTEN.keys() | ELSEWHERE.keys()
    assert known - texts == set()
    assert not (APPLIED.keys() | REWRITTEN.keys()) & ELSEWHERE.keys()


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.module.__name__)
def test_a_remedy_of_the_zoo_is_one_that_is_collected(
    program: Program, trainer: Callable[..., pl.Trainer]
) -> None:
    """The list above would miss a remedy that begins with a verb of its own."""
    report, _, _ = guarded(program, program.module, trainer)
    patterns = [pattern_of(text) for text, _ in templates()]
    for finding in report.findings:
        assert any(p.search(finding.remedy) for p in patterns), finding.remedy
