"""What a reader gets in a terminal: tracebacks of their own code, a last line, places to click."""

from __future__ import annotations

import re
import sys
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_evalguard
from lightning_evalguard import (
    ConfusionMetrics,
    EvalGuard,
    EvalGuardError,
    EvalGuardWarning,
    Finding,
    allow,
    evaluating,
    watch,
)
from lightning_evalguard.cells import cell_of
from lightning_evalguard.checks.registry import CHECKS, DOCUMENTATION, page_of
from lightning_evalguard.huggingface import EvalGuardCallback
from lightning_evalguard.instruments.tracebacks import trim
from lightning_evalguard.model.places import place_about, with_excerpt
from lightning_evalguard.paths import shown_path

pytest_plugins = ["pytester"]
OURS = Path(lightning_evalguard.__file__).parent
Make = Callable[..., pl.Trainer]


class Plain(pl.LightningModule):
    """Four numbers, two classes; nothing is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> DataLoader[Any]:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8)

    def val_dataloader(self) -> DataLoader[Any]:
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(2))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8)


class Drops(Plain):
    """Its dropout is active in every mode."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        F.dropout(self.layer(batch[0]), 0.5)


class Fails(Plain):
    """Its own code raises."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        raise KeyError("no such column")


class Waits(Plain):
    """Reads a number back in each training step."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.last = loss.item()
        return loss


def files_of(error: BaseException) -> list[Path]:
    return [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]


def ours_in(error: BaseException) -> list[str]:
    return [path.name for path in files_of(error) if path.is_relative_to(OURS)]


@pytest.mark.parametrize(
    ("module", "kind"),
    [(Drops, EvalGuardError), (Fails, KeyError)],
    ids=["verdict", "theirs"],
)
def test_no_frame_of_ours_stands_in_a_traceback(
    module: type[Plain], kind: type[Exception], trainer: Make
) -> None:
    with pytest.raises(kind) as raised:
        trainer(callbacks=[EvalGuard()]).fit(module())
    assert files_of(raised.value)[0] == Path(__file__)
    assert ours_in(raised.value) == []


def test_a_finding_at_the_end_of_a_run_has_no_frame_of_ours_either(
    trainer: Make,
) -> None:
    class LeavesGradOn(Plain):
        def on_validation_end(self) -> None:
            self.layer.weight.data.add_(1.0)

    with pytest.raises(EvalGuardError) as raised:
        trainer(callbacks=[EvalGuard()]).fit(LeavesGradOn())
    assert ours_in(raised.value) == []


def test_evaluating_raises_without_frames_of_ours() -> None:
    model = nn.Sequential(nn.Linear(4, 2), Always())
    with pytest.raises(EvalGuardError) as raised, evaluating(model):
        model(torch.randn(3, 4))
    assert ours_in(raised.value) == []


class Always(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5)


def test_a_fault_of_ours_keeps_its_frames() -> None:
    with pytest.raises(AttributeError) as raised:
        shown_path(3)  # type: ignore[arg-type]
    trim(raised.value)
    assert ours_in(raised.value) == ["paths.py"]


@pytest.mark.filterwarnings("ignore::lightning_evalguard.EvalGuardWarning")
def test_a_fit_that_warned_ends_with_one_line(
    trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(callbacks=[EvalGuard(metrics=None)], max_epochs=3).fit(Waits())
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "lightning-evalguard: 1 finding in 4 evaluations (1 sync)"


def test_a_clean_fit_ends_without_a_line(
    trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(callbacks=[EvalGuard(metrics=None)]).fit(Plain())
    assert "lightning-evalguard" not in "".join(capsys.readouterr())


@pytest.mark.filterwarnings("ignore::lightning_evalguard.EvalGuardWarning")
def test_the_last_line_counts_what_this_run_found(
    trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = EvalGuard(metrics=None)
    trainer(callbacks=[guard]).fit(Waits())
    capsys.readouterr()
    trainer(callbacks=[guard]).fit(Plain())
    assert "lightning-evalguard" not in capsys.readouterr().err


def line_of(function: Any, words: str = "def ") -> str:
    """``file:line`` of the first line of a function that holds `words`."""
    code = function.__code__
    source = Path(code.co_filename).read_text(encoding="utf-8").splitlines()
    line = next(
        i for i in range(code.co_firstlineno, len(source) + 1) if words in source[i - 1]
    )
    return f"{code.co_filename}:{line}"


class Logs(Plain):
    """Has something of each kind to point at."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Always()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        share = self.head(self.layer(batch[0])).mean()
        self.log("val/share", share)


ABOUT = {
    "its log": (Finding("scores", "validate", "", "", "val/share"),
                lambda: line_of(Logs.validation_step, "self.log(")),
    "its loader": (Finding("data", "validate", "", ""), lambda: line_of(Plain.val_dataloader)),
    "its class": (Finding("state", "validate", "", "", "head"), lambda: line_of(Always.forward)),
    "a tensor's class": (Finding("state", "test", "", "", "head.mean"),
                         lambda: line_of(Always.forward)),
    "its step": (Finding("stochastic", "validate", "", "", "layer"),
                 lambda: line_of(Logs.validation_step)),
    "its optimizer": (Finding("weights", "fit", "is held by no optimizer", "", "head"),
                      lambda: line_of(Plain.configure_optimizers)),
}  # fmt: skip


@pytest.mark.parametrize("about", ABOUT)
def test_a_finding_without_a_line_points_at_what_it_is_about(about: str) -> None:
    finding, place = ABOUT[about]
    assert place_about(Logs(), finding) == place()


def test_a_finding_keeps_the_lines_around_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    lines = [f"x{n} = {n}" for n in range(1, 21)]
    lines[8] = "login(token='hf_abcdefghijk', key=x9)"
    path.write_text("\n".join(lines))

    def at(line: object) -> Finding:
        return with_excerpt(
            Finding("sync", "fit", "waits", "Keep it.", location=f"{path}:{line}")
        )

    assert list(at(10).around) == [7, 8, 9, 10, 11, 12, 13]
    assert at(10).around[10] == "x10 = 10"
    assert at(10).around[9] == "login(token='***', key=x9)"
    assert list(at(2).around) == [1, 2, 3, 4, 5]
    assert list(at(20).around) == [17, 18, 19, 20]
    assert [at(line).excerpt for line in (0, 99, "?", "")] == [None] * 4
    found = at(10)
    path.write_text("")
    assert with_excerpt(found) is found  # as it was
    elsewhere = Finding("sync", "fit", "waits", "Keep it.", location="<stdin>:3")
    assert with_excerpt(elsewhere).excerpt is None


def test_the_lines_are_read_in_the_run_and_go_with_its_report(trainer: Make) -> None:
    guard = EvalGuard()
    with pytest.warns(EvalGuardWarning):
        trainer(callbacks=[guard], max_epochs=1).fit(Waits())
    (finding,) = [f for f in guard.report.findings if f.check == "sync"]
    number = int((finding.location or "").rpartition(":")[2])
    assert ".item()" in finding.around[number]
    assert len(finding.around) == 7


@pytest.mark.parametrize(
    "finding", [3, None, Finding("state", "nowhere", "", "", "a.b")]
)
def test_a_place_that_cannot_be_found_costs_nothing(finding: Any) -> None:
    assert place_about(nn.Linear(1, 1), finding) is None


def test_a_warning_points_at_the_loader_of_the_module(trainer: Make) -> None:
    class Shuffles(Plain):
        def val_dataloader(self) -> DataLoader[Any]:
            return DataLoader(super().val_dataloader().dataset, 8, shuffle=True)

    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always", EvalGuardWarning)
        warnings.filterwarnings("ignore", module="lightning.*")
        trainer(callbacks=[EvalGuard()]).validate(Shuffles())
    places = {
        f"{warning.filename}:{warning.lineno}"
        for warning in given
        if "[data]" in str(warning.message)
    }
    assert places == {line_of(Shuffles.val_dataloader)}


def test_a_sentence_without_a_place_points_at_the_line_that_runs() -> None:
    from lightning_evalguard.report import warn_text

    with pytest.warns(EvalGuardWarning, match="a sentence") as given:
        warn_text("a sentence")
    assert given[0].filename == __file__


CELLS = {
    "<ipython-input-9-0a1b2c3d>": "cell 9",
    "/tmp/ipython-input-12-3456.py": "cell 12",
    "/tmp/ipykernel_71/1234567890.py": "cell 4",
    "C:\\Temp\\ipykernel_71\\1234567890.py": "a cell",
    "/tmp/ipython-input-3456.py": "a cell",
    "/home/me/ipykernel_notes.py": None,
    "<stdin>": None,
}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A running kernel whose fourth execution compiled a cell."""
    compiler = types.SimpleNamespace(
        _filename_map={"/tmp/ipykernel_71/1234567890.py": 4}
    )
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(compile=compiler)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)


@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize(("path", "cell"), CELLS.items())
def test_code_of_a_notebook_is_named_by_its_cell(path: str, cell: str | None) -> None:
    assert cell_of(path) == cell
    assert shown_path(f"{path}:3") == (f"{cell}, line 3" if cell else f"{path}:3")


def test_a_switch_of_a_cell_names_its_function() -> None:
    place = "<ipython-input-9-0a1b2c3d>:3"
    finding = Finding(
        "sync", "fit", "waits", "Do not.", location=place, function="train"
    )
    assert finding.switch == 'EvalGuard(allow={"sync": ["train"]})'
    assert str(finding).startswith("cell 9, line 3: waits. ")


def script_() -> None:
    watch(synk="ignore")


MISSPELT: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "EvalGuard": (lambda: EvalGuard(mode="warn"), TypeError, "modes"),  # type: ignore[call-arg]
    "callback": (lambda: EvalGuardCallback(scroes="warn"), TypeError, "scores"),  # type: ignore[call-arg]
    "metrics": (lambda: ConfusionMetrics(classnames=["a"]), TypeError, "class_names"),  # type: ignore[call-arg]
    "evaluating": (
        lambda: evaluating(nn.ReLU(), optimisers=[]),
        TypeError,
        "optimizers",
    ),  # type: ignore[call-arg]
    "watch": (script_, ValueError, "sync"),
    "allow": (lambda: allow("stochastics"), ValueError, "stochastic"),
    "allow=": (lambda: EvalGuard(allow={"mods": ["x"]}), ValueError, "modes"),
    "policy": (lambda: EvalGuard(modes="warning"), ValueError, "warn"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("where", MISSPELT)
def test_a_misspelt_word_is_answered_with_the_one_that_is_meant(where: str) -> None:
    make, kind, meant = MISSPELT[where]
    with pytest.raises(kind, match=rf"Did you mean: {meant}$"):
        make()


def test_a_word_that_is_near_to_nothing_gets_no_hint() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'qqqq'$"):
        EvalGuard(qqqq=1)  # type: ignore[call-arg]


def test_pytest_shows_no_frame_of_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from lightning_evalguard import Finding
        from lightning_evalguard.ranks import Alone

        def test_it():
            Alone().hold([Finding("modes", "fit", "is so", "Do so.")])
        """
    )
    run = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")
    printed = "\n".join(run.outlines)
    assert "EvalGuardError" in printed
    assert not re.search(r"lightning_evalguard/\S+\.py:\d+", printed), printed


def test_links_lead_where_the_package_says_that_its_docs_are() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nDocumentation = "{DOCUMENTATION}"\n' in project
    pages = Path(__file__).parents[1] / "docs" / "checks"
    index = (pages / "index.md").read_text(encoding="utf-8")
    for check in CHECKS:
        assert page_of(check) == f"{DOCUMENTATION}/checks/{check}/"
        page = (pages / f"{check}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {check}\n")
        assert f'<a id="{check}"></a>' in index  # an older address
    assert page_of("metrics") == page_of("scores")  # as older records have it
    assert page_of("javascript:alert(1)") is None
