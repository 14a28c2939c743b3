"""What README.md and docs/ show is what the package does: their code runs, their output is printed.

A ```python block is executed, one after the other of a page, after the prelude below. A ```text
block that begins with ``$ command`` is what that command prints: each line of it, in that order,
``...`` for lines left out. A block without a command is shown by no page.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

import lightning_evalguard

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of one kind, in order."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language == kind]


class Model(LightningModule):
    """Separates the quadrants of a plane; brings its own data."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
        )
        x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        self._data = x, (x[:, 0] * x[:, 1] > 0).long()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        return {"logits": self(batch[0]), "target": batch[1]}

    validation_step = test_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.02)

    def _loader(self, begin: int, end: int) -> DataLoader[Any]:
        x, y = self._data
        return DataLoader(TensorDataset(x[begin:end], y[begin:end]), 32)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(0, 128)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(128, 192)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(192, 256)


@pytest.fixture
def namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """What a page takes for granted: its reader has a model, its data, and a quiet Trainer."""
    monkeypatch.chdir(tmp_path)

    def quiet(**given: Any) -> Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False,
            "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "default_root_dir": tmp_path,
        }  # fmt: skip
        return Trainer(**(settings | given))

    names: dict[str, Any] = {name: getattr(lightning_evalguard, name)
                             for name in lightning_evalguard.__all__}  # fmt: skip
    module = Model()
    names |= {
        "__name__": "page",
        "torch": torch,
        "Model": Model,
        "module": module,
        "model": module.net,
        "loader": module.test_dataloader(),
        "quiet": quiet,
    }
    yield names
    for value in names.values():  # a watch lasts until the process ends
        if isinstance(value, lightning_evalguard.Report) and hasattr(value, "stop"):
            value.stop()


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_a_block_of_the_readme_brings_its_imports(
    code: str, namespace: dict[str, Any]
) -> None:
    """It is pasted alone: what it needs beside your model, it imports itself."""
    own = {
        name: namespace[name]
        for name in ("__name__", "module", "model", "loader", "quiet")
    }
    exec(compile(code.replace("= Trainer(", "= quiet("), "README.md", "exec"), own)


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}"
)
def test_the_code_of_a_page_runs(page: Path, namespace: dict[str, Any]) -> None:
    text = page.read_text(encoding="utf-8")
    for code in blocks(page, "python"):
        # so that messages name the page's own lines
        above = text.partition(code)[0].count("\n")
        code = code.replace("= Trainer(", "= quiet(")
        exec(compile("\n" * above + code, str(page), "exec"), namespace)


def _plain(line: str) -> str:
    return " ".join(line.split())


def _missing(shown: str, printed: str) -> str | None:
    """The first line of `shown` that does not stand in `printed` after the lines before it."""
    words, at = _plain(printed), 0
    for line in shown.splitlines():
        if line.strip() in ("", "..."):
            continue
        found = words.find(_plain(line), at)
        if found < 0:
            return line
        at = found + len(_plain(line))
    return None


def _commands() -> list[tuple[str, str, str]]:
    shown = []
    for page in PAGES:
        for text in blocks(page, "text"):
            first, _, rest = text.partition("\n")
            shown.append((page.stem, first, rest))
    return shown


@pytest.mark.parametrize(("page", "first", "rest"), _commands())
def test_a_shown_output_names_its_command(page: str, first: str, rest: str) -> None:
    assert first.startswith("$ python "), "it begins with the command that prints it"


@pytest.mark.slow
@pytest.mark.parametrize(("page", "first", "rest"), _commands())
def test_a_command_prints_what_its_page_shows(
    page: str, first: str, rest: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    _, *arguments = shlex.split(first.removeprefix("$ "))
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
    )  # fmt: skip
    printed = done.stdout + done.stderr
    assert _missing(rest, printed) is None, printed


def test_the_comparison_can_fail() -> None:
    assert _missing("one two\nthree", "one\n  two\nthree") is None
    assert _missing("one\n...\nthree", "one two three") is None
    assert _missing("two\none", "one two") == "one"


def test_the_readme_links_to_files_that_are_there() -> None:
    for page in [*PAGES, ROOT / "ARCHITECTURE.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_lists_every_check_with_its_default() -> None:
    from lightning_evalguard.checks.registry import RULES

    rows = re.findall(
        r'^\| `(\w+)` \| `"(\w+)"` \|', (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert dict(rows) == {name: rule.default for name, rule in RULES.items()}


def test_architecture_names_files_that_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", text))
    assert named
    places = [ROOT, ROOT / "lightning_evalguard"]
    assert {
        n for n in named if not any((place / n).exists() for place in places)
    } == set()


def test_the_two_commands_that_ci_takes_from_the_readme_are_the_first_console_blocks() -> (
    None
):
    first, second = (text.splitlines() for text in blocks(README, "console")[:2])
    assert first[0] == 'pip install -q -c constraints.txt -e ".[examples]"'
    assert second[0] == 'pip install -q -c constraints.txt -e ".[test]"'
    assert second[1].startswith("pytest")


@pytest.mark.slow
def test_the_picture_of_the_message_shows_what_is_printed() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    shown = (ROOT / "docs" / "pictures" / "message.svg").read_text(encoding="utf-8")
    printed = made["terminal"](made["printed"](made["_COMMAND"]))
    assert shown == printed, "run `python docs/pictures.py` again"


def test_pictures_are_there_and_small() -> None:
    for page in PAGES:
        for target in re.findall(
            r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8")
        ):
            assert (page.parent / target).stat().st_size < 50_000
