"""EvalGuard on a real Trainer: what stands in the logs, the files, the monitors and the CLI."""

from __future__ import annotations

import csv
import importlib
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from sklearn.metrics import confusion_matrix, f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_evalguard import ConfusionMetrics, EvalGuard, EvalGuardWarning
from models import modes as zoo

Make = Callable[..., pl.Trainer]


class Returns(zoo.Honest):
    """Returns logits and target from its evaluation steps."""

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        return {"logits": self(batch[0]), "target": batch[1]}

    test_step = validation_step


def counted_by_hand(
    module: pl.LightningModule, loader: Any
) -> tuple[list[int], list[int]]:
    module.eval()
    with torch.no_grad():
        pairs = [(module(x).argmax(1), y) for x, y in loader]
    module.train()
    return torch.cat([y for _, y in pairs]).tolist(), torch.cat(
        [p for p, _ in pairs]
    ).tolist()


def test_the_scores_are_sklearns_and_can_be_monitored_in_either_order(
    trainer: Make, tmp_path: Path
) -> None:
    guard, module = EvalGuard(), Returns()
    saved = ModelCheckpoint(tmp_path, monitor="val/f1_macro", mode="max")
    stops = EarlyStopping("val/recall_macro", mode="max")
    run = trainer(
        callbacks=[stops, guard, saved],
        max_epochs=2,
        enable_checkpointing=True,
        logger=False,
    )
    run.fit(module, zoo.loader(), zoo.loader(seed=1))
    run.validate(module, zoo.loader(seed=1), verbose=False)
    target, preds = counted_by_hand(module, zoo.loader(seed=1))
    result = guard.report.confusion["val"]
    expected = confusion_matrix(target, preds, labels=range(3))
    assert result.matrix.tolist() == expected.tolist()
    assert result.total == 32
    f1 = f1_score(target, preds, average="macro", labels=sorted({*target, *preds}))
    assert result.scores["f1_macro"] == pytest.approx(f1)
    assert run.callback_metrics["val/f1_macro"].item() == pytest.approx(f1)
    assert saved.best_model_score is not None
    assert guard.report.findings == []


EIGHT = ["accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "kappa", "mcc",
         "precision_macro", "recall_macro"]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "logged"),
    [
        (ConfusionMetrics(scores=["f1_macro", "f1_class/*"]),
         ["f1_class/0", "f1_class/1", "f1_class/2", "f1_macro"]),
        (ConfusionMetrics(scores=[]), []),
        (ConfusionMetrics(per_class=3), sorted([*EIGHT, *(f"f1_class/{i}" for i in range(3))])),
        (ConfusionMetrics(top_k=2), sorted([*EIGHT, "top2_accuracy"])),
        (ConfusionMetrics(per_class=2), EIGHT),
    ],
)  # fmt: skip
def test_the_user_chooses_which_scores_are_logged(
    config: ConfusionMetrics, logged: list[str], trainer: Make
) -> None:
    guard = EvalGuard(metrics=config)
    run = trainer(callbacks=[guard], limit_train_batches=1)
    run.fit(Returns(), zoo.loader(), zoo.loader(seed=1))
    keys = sorted(
        key.removeprefix("val/") for key in run.callback_metrics if "val/" in key
    )
    assert keys == logged
    # computed in any case
    assert "specificity_macro" in guard.report.confusion["val"].scores


class YesOrNo(zoo.Honest):
    """One logit a sample."""

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        return {"logits": self(batch[0])[:, 0], "target": (batch[1] > 0).long()}


def test_of_a_binary_task_the_scores_of_the_positive_class_are_logged(
    trainer: Make,
) -> None:
    run = trainer(callbacks=[EvalGuard()], limit_train_batches=1)
    run.fit(YesOrNo(), zoo.loader(), zoo.loader(seed=1))
    keys = {key.removeprefix("val/") for key in run.callback_metrics if "val/" in key}
    assert {"accuracy", "precision", "recall", "f1", "mcc"} <= keys
    assert len(keys) == 8


def test_a_score_that_a_callback_monitors_is_logged(
    trainer: Make, tmp_path: Path
) -> None:
    saved = ModelCheckpoint(
        tmp_path,
        monitor="val/f1_class/1",
        mode="max",
        filename="{epoch}-{val/recall_min:.2f}",
    )
    run = trainer(
        callbacks=[EvalGuard(), saved], limit_train_batches=1, enable_checkpointing=True
    )
    run.fit(Returns(), zoo.loader(), zoo.loader(seed=1))
    assert saved.best_model_score is not None
    assert {"val/f1_class/1", "val/recall_min"} <= set(run.callback_metrics)


@pytest.mark.parametrize("given", ["accuracy", 3, [1], {"accuracy": 1}])
def test_scores_that_are_no_list_of_names_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="scores="):
        ConfusionMetrics(scores=given)


def test_a_misspelt_score_is_refused_with_the_one_that_is_meant() -> None:
    with pytest.raises(
        ValueError, match=r"'f1_marco' is no score. Did you mean: f1_macro"
    ):
        ConfusionMetrics(scores=["f1_marco"])


def test_nothing_is_counted_in_the_sanity_check(trainer: Make) -> None:
    guard = EvalGuard()
    run = trainer(callbacks=[guard], limit_train_batches=1)
    run.fit(Returns(), zoo.loader(), zoo.loader(seed=1))
    assert guard.report.confusion["val"].total == 32
    assert guard.report.checked["batches"] == 4 + 2


def test_tensorboard_and_csv_hold_the_scalars_and_the_figure(
    trainer: Make, tmp_path: Path
) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    run = trainer(
        callbacks=[EvalGuard()], logger=loggers, max_epochs=2, log_every_n_steps=1
    )
    run.fit(Returns(), zoo.loader(), zoo.loader(seed=1))
    events = EventAccumulator(loggers[0].log_dir, size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert sorted(tag for tag in tags["scalars"] if tag.startswith("val/")) == [
        f"val/{score}" for score in EIGHT
    ]
    images = events.Images("val/confusion_matrix")
    assert [e.step for e in images] == [e.step for e in events.Scalars("val/accuracy")]
    assert len(images) == 2
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    folder = Path(loggers[1].log_dir) / "confusion_matrix"
    with (folder / "val-last.csv").open() as file:
        rows = list(csv.reader(file))
    assert sum(int(n) for row in rows[1:] for n in row[1:]) == 32
    assert len(list(folder.glob("*.png"))) == 2


def test_a_key_that_the_module_logs_itself_stands(trainer: Make) -> None:
    class LogsItsOwn(Returns):
        def validation_step(
            self, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> Any:
            self.log("val/mcc", torch.tensor(0.25))
            return super().validation_step(batch, batch_idx)

        def on_validation_epoch_end(self) -> None:
            self.log("val/accuracy", torch.tensor(0.5))

    guard = EvalGuard()
    run = trainer(callbacks=[guard], max_epochs=3)
    with pytest.warns(EvalGuardWarning, match=r"expected .* \[scores\]") as told:
        run.fit(LogsItsOwn(), zoo.loader(), zoo.loader(seed=1))
    assert len([w for w in told if issubclass(w.category, EvalGuardWarning)]) == 2
    assert {f.subject for f in guard.report.findings} == {"val/accuracy", "val/mcc"}
    assert run.callback_metrics["val/accuracy"].item() == 0.5
    assert run.callback_metrics["val/mcc"].item() == 0.25
    assert "val/f1_macro" in run.callback_metrics
    notes = [note for note in guard.report.notes if not note.startswith("syncs:")]
    assert notes[0].startswith("val: multiclass, 3 classes")


def test_a_key_that_the_module_logs_right_is_no_finding(trainer: Make) -> None:
    class LogsTheSame(Returns):
        def validation_step(
            self, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> Any:
            outputs = super().validation_step(batch, batch_idx)
            right = (outputs["logits"].argmax(1) == batch[1]).float().mean()
            self.log("val/accuracy", right, batch_size=len(batch[1]))
            return outputs

    guard = EvalGuard()
    trainer(callbacks=[guard]).fit(LogsTheSame(), zoo.loader(), zoo.loader(30, seed=1))
    assert guard.report.findings == []


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_table_is_printed_where_lightning_prints_its_own(
    stage: str, trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(callbacks=[EvalGuard(weights="ignore")])  # nothing trains them here
    getattr(run, stage)(Returns(), zoo.loader(), verbose=False)
    assert capsys.readouterr().out == ""
    getattr(run, stage)(Returns(), zoo.loader(), verbose=True)
    assert "most confused with" in capsys.readouterr().out


def test_each_loader_has_its_own_matrix(trainer: Make) -> None:
    guard = EvalGuard(weights="ignore")  # nothing trains them here
    run = trainer(callbacks=[guard])
    run.test(Returns(), [zoo.loader(), zoo.loader(24, seed=3)], verbose=False)
    assert guard.report.confusion["test"].total == 32
    assert guard.report.confusion["test/dataloader_idx_1"].total == 24
    assert "test/accuracy/dataloader_idx_1" in run.callback_metrics


def test_an_extractor_says_where_predictions_come_from(trainer: Make) -> None:
    class ReturnsAPair(zoo.Honest):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0]), batch[1]

    config = ConfusionMetrics(
        source=lambda outputs, batch: outputs, class_names=["a", "b", "c"]
    )
    guard = EvalGuard(metrics=config)
    trainer(callbacks=[guard]).validate(ReturnsAPair(), zoo.loader(), verbose=False)
    assert guard.report.confusion["val"].class_names == ("a", "b", "c")


def test_an_extractor_that_returns_one_value_is_refused(trainer: Make) -> None:
    guard = EvalGuard(
        metrics=ConfusionMetrics(source=lambda outputs, batch: outputs["logits"])
    )
    with pytest.raises(ValueError, match="source"):
        trainer(callbacks=[guard]).validate(Returns(), zoo.loader(), verbose=False)


def test_nothing_usable_is_one_sentence(trainer: Make) -> None:
    class ReturnsText(zoo.Honest):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return {"texts": ["a"]}

    quiet = EvalGuard()
    trainer(callbacks=[quiet]).validate(ReturnsText(), zoo.loader(), verbose=False)
    (note,) = [n for n in quiet.report.notes if n.startswith("val: ")]
    assert "texts" in note
    assert "Return " in note
    asked = EvalGuard(metrics=ConfusionMetrics(num_classes=3))
    with pytest.warns(EvalGuardWarning, match="texts"):
        trainer(callbacks=[asked]).validate(ReturnsText(), zoo.loader(), verbose=False)


def test_an_empty_evaluation_gives_nan_and_one_warning(trainer: Make) -> None:
    class AllIgnored(Returns):
        def validation_step(
            self, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> Any:
            return {"logits": self(batch[0]), "target": torch.full_like(batch[1], -100)}

    guard = EvalGuard()
    with pytest.warns(EvalGuardWarning, match="no sample was counted") as told:
        trainer(callbacks=[guard], max_epochs=2).fit(
            AllIgnored(), zoo.loader(), zoo.loader(seed=1)
        )
    assert sum(issubclass(w.category, EvalGuardWarning) for w in told) == 1
    result = guard.report.confusion["val"]
    assert result.total == 0
    assert result.scores["accuracy"] != result.scores["accuracy"]


def test_metrics_none_counts_and_logs_nothing(trainer: Make) -> None:
    guard = EvalGuard(metrics=None)
    run = trainer(callbacks=[guard])
    run.validate(Returns(), zoo.loader(), verbose=False)
    assert guard.report.confusion == {}
    assert not any(key.startswith("val/") for key in run.callback_metrics)


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_figure_that_cannot_be_written_costs_one_warning_an_epoch(
    trainer: Make, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path)
    Path(logger.log_dir).mkdir(parents=True)
    (Path(logger.log_dir) / "confusion_matrix").write_text("in the way")
    with pytest.warns(
        EvalGuardWarning, match="CSVLogger did not take the confusion matrix"
    ):
        run = trainer(callbacks=[EvalGuard()], logger=logger, log_every_n_steps=1)
        run.fit(Returns(), zoo.loader(), zoo.loader(seed=1))
    assert run.state.finished


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"modes": "loud"}, "modes='loud'"),
        ({"allow": {"mode": []}}, "allow"),
        ({"metrics": 3}, "metrics=3"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        EvalGuard(**arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_classes": 1}, "num_classes=1"),
        ({"num_classes": 3, "class_names": ["a"]}, "class_names"),
    ],
)
def test_bad_metrics_are_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ConfusionMetrics(**arguments)


@pytest.mark.skipif(
    tuple(map(int, pl.__version__.split(".")[:2])) < (2, 6),
    reason="there a Trainer refuses all callbacks of the package's other name: Expected a parent",
)
def test_the_callback_works_in_the_packages_other_name(tmp_path: Path) -> None:
    old = importlib.import_module("pytorch_lightning")

    class Module(old.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(4, 3)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return {"logits": self.net(batch[0]), "target": batch[1]}

    guard = EvalGuard()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    run = old.Trainer(
        accelerator="cpu", callbacks=[guard], enable_checkpointing=False,
        default_root_dir=tmp_path, **quiet,
    )  # fmt: skip
    run.validate(Module(), zoo.loader(), verbose=False)
    assert guard.report.confusion["val"].total == 32


# LightningCLI

CLI = Path(__file__).parents[2] / "examples" / "cli"


def cli(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CLI / "main.py"), *arguments],
        capture_output=True, text=True, check=False, cwd=where, timeout=120,
    )  # fmt: skip


def test_the_cli_takes_the_callback_from_yaml(tmp_path: Path) -> None:
    done = cli(
        "fit",
        "--config",
        str(CLI / "config.yaml"),
        "--trainer.max_epochs=1",
        where=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("lightning_logs/version_*")
    events = EventAccumulator(str(folder)).Reload()
    assert "val/f1_macro" in events.Tags()["scalars"]
    assert "val/confusion_matrix" in events.Tags()["images"]


@pytest.fixture
def parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """What the same script says of arguments with which it fits nothing: in this process."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(CLI / "main.py"), *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            warnings.simplefilter("ignore")
            runpy.run_path(str(CLI / "main.py"), run_name="__main__")
        return (ended.value.code, *capsys.readouterr())

    return run


def test_the_cli_takes_an_override_and_refuses_a_wrong_policy(
    parsed: Callable[..., tuple[Any, str, str]],
) -> None:
    config = ("fit", "--config", str(CLI / "config.yaml"))
    status, printed, said = parsed(
        *config, "--trainer.callbacks.modes=warn", "--print_config"
    )
    assert not status, said
    assert "modes: warn" in printed, said
    status, _, refused = parsed(*config, "--trainer.callbacks.modes=loud")
    assert status
    assert "loud" in refused
    assert (
        "'error', 'warn', 'fix', 'ignore'" in refused.replace('"', "'")
        or "Literal" in refused
    )


def test_the_clis_help_is_the_docstring(
    parsed: Callable[..., tuple[Any, str, str]],
) -> None:
    _, shown, said = parsed(
        "fit", "--trainer.callbacks.help=lightning_evalguard.EvalGuard"
    )
    assert "Policy for a module in the wrong mode" in " ".join(shown.split()), said


@pytest.mark.slow
def test_two_processes_count_each_sample_once_and_are_given_no_advice(
    tmp_path: Path,
) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(CLI.parent)!r})\n"
        "import lightning.pytorch as pl\n"
        "from digits import Digits, loaders\n"
        "from lightning_evalguard import EvalGuard\n"
        "if __name__ == '__main__':\n"
        "    guard = EvalGuard()\n"
        "    trainer = pl.Trainer(accelerator='cpu', devices=2, strategy='ddp', max_epochs=1,\n"
        "        logger=False, enable_progress_bar=False, enable_checkpointing=False,\n"
        "        callbacks=[guard])\n"
        "    trainer.fit(Digits(), *loaders())\n"
        "    total = guard.report.confusion['val'].total\n"
        "    Path(f'total-{trainer.global_rank}').write_text(str(total))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # a file each: two processes' lines may stand in one
    totals = {path.name: path.read_text() for path in tmp_path.glob("total-*")}
    assert totals == {"total-0": "359", "total-1": "359"}
    advised = re.findall(r"self\.log\('([^']+)', \.\.\., sync_dist=True", done.stderr)
    assert set(advised) <= {"val/loss"}  # the module's own key
