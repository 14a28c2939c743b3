"""Each sink against its real store, read back."""

from __future__ import annotations

import contextlib
import csv
import gc
import importlib.util
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_evalguard.confusion.loggers import _title, write
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.result import ConfusionResult


def result() -> ConfusionResult:
    confmat = ConfusionMatrix(3)
    confmat.update(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]))
    made = confmat.result(["cat", "dog", "fox"])
    made.epoch, made.step = 1, 20
    return made


def events(folder: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(folder)
    accumulator.Reload()
    return accumulator


def test_tensorboard_holds_the_figure_at_its_step(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    assert write([logger], "val", result(), 20) == []
    assert write([logger], "val", result(), 40) == []
    logger.finalize("success")
    images = events(logger.log_dir).Images("val/confusion_matrix")
    assert [image.step for image in images] == [20, 40]
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    assert images[0].width > 200


def test_csv_holds_picture_matrix_and_table(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    assert write([logger], "val/dataloader_idx_1", result(), 20) == []
    folder = Path(logger.log_dir) / "confusion_matrix"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"val_dataloader_idx_1-{which}{end}"
        for which in ("best", "last")
        for end in ("-classes.csv", ".csv", ".png")
    ]
    with (folder / "val_dataloader_idx_1-last.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["true \\ predicted", "cat", "dog", "fox"],
            ["cat", "1", "0", "0"],
            ["dog", "0", "1", "0"],
            ["fox", "0", "1", "1"],
        ]
    with (folder / "val_dataloader_idx_1-last-classes.csv").open(
        encoding="utf-8"
    ) as file:
        rows = list(csv.DictReader(file))
    assert [(r["class"], r["support"], r["confused_with"]) for r in rows] == [
        ("cat", "1", ""),
        ("dog", "1", ""),
        ("fox", "2", "dog"),
    ]


def test_the_figure_names_the_step_of_the_scalars_beside_it() -> None:
    made = result()
    made.step = 21  # steps taken
    assert _title("val", made, 20) == "val confusion matrix · epoch 1 · step 20"


def test_files_are_those_of_the_last_evaluation_and_of_the_best(tmp_path: Path) -> None:
    logger, folder = CSVLogger(tmp_path), None
    for step, right in enumerate([1, 4, 2, 3]):
        confmat = ConfusionMatrix(2)
        confmat.update(
            torch.tensor([0] * right + [1] * (4 - right)), torch.tensor([0] * 4)
        )
        confmat.update(torch.tensor([1] * 4), torch.tensor([1] * 4))
        assert write([logger], "val", confmat.result(), step) == []
        folder = Path(logger.log_dir) / "confusion_matrix"
        kept = {
            which: (folder / f"val-{which}.csv").read_text()
            for which in ("best", "last")
        }
        assert kept["last"].splitlines()[1] == f"0,{right},{4 - right}"
        assert kept["best"].splitlines()[1] == ("0,1,3" if step == 0 else "0,4,0")
    assert folder is not None
    assert len(list(folder.iterdir())) == 6
    other = CSVLogger(tmp_path)  # another run has another best
    assert write([other], "val", confmat.result(), 9) == []
    best = Path(other.log_dir) / "confusion_matrix" / "val-best.csv"
    assert best.read_text().splitlines()[1] == "0,3,1"


def test_a_failing_sink_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "lightning_logs").write_text("in the way of the folder")
    broken, good = CSVLogger(tmp_path), TensorBoardLogger(tmp_path / "tb")
    (failure,) = write([broken, good], "val", result(), 1)
    assert failure.startswith("val: CSVLogger did not take the confusion matrix: ")
    good.finalize("success")
    assert events(good.log_dir).Tags()["images"] == ["val/confusion_matrix"]


def test_a_logger_that_is_not_known_is_left_alone() -> None:
    assert write([object()], "val", result(), 1) == []


def many() -> ConfusionResult:
    """A hundred classes, above what a dashboard shows one by one."""
    confmat = ConfusionMatrix(100)
    confmat.update(torch.arange(100).roll(1), torch.arange(100))
    made = confmat.result()
    made.epoch, made.step = 1, 20
    return made


# What these packages themselves warn of is none of ours.
dashboard = pytest.mark.filterwarnings("ignore")


def holds_all(record: Path, *parts: bytes) -> None:
    """Wait for wandb's own process, which writes on for a while on a busy machine."""
    for _ in range(600):
        missing = [part for part in parts if part not in record.read_bytes()]
        if not missing:
            return
        time.sleep(0.1)
    assert missing == []


@dashboard
def test_wandb_holds_the_chart_the_table_and_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert write([logger], "val", result(), 20) == []
    assert write([logger], "test", many(), 40) == []
    folder = Path(logger.experiment.dir)
    logger.experiment.finish()
    (chart,) = folder.glob("media/table/val/confusion_matrix_table_*.json")
    found = json.loads(chart.read_text())
    assert found["columns"] == ["Actual", "Predicted", "nPredictions"]
    assert [row for row in found["data"] if row[2]] == [
        ["cat", "cat", 1], ["dog", "dog", 1], ["fox", "dog", 1], ["fox", "fox", 1],
    ]  # fmt: skip
    (large,) = folder.glob("media/table/test/confusion_matrix_table_*.json")
    assert len(json.loads(large.read_text())["data"]) == 50 * 50
    (table,) = folder.glob("media/table/val/per_class_*.json")
    assert json.loads(table.read_text())["data"][2][0] == "fox"
    assert len(list(folder.glob("media/images/*/confusion_matrix_figure_*.png"))) == 2
    (record,) = folder.parent.glob("*.wandb")
    holds_all(record, b"wandb/confusion_matrix/v1", b"trainer/global_step")


@dashboard
def test_mlflow_holds_picture_matrix_and_table(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger(
        tracking_uri=uri, artifact_location=str(tmp_path / "artifacts")
    )
    assert write([logger], "val", result(), 20) == []
    assert write([logger], "val", result(), 40) == []
    client = mlflow.MlflowClient(tracking_uri=uri)
    paths = [f.path for f in client.list_artifacts(logger.run_id, "confusion_matrix")]
    assert sorted(paths) == [
        f"confusion_matrix/val-{which}{end}"
        for which in ("best", "last")
        for end in ("-classes.csv", ".csv", ".png")
    ]
    local = client.download_artifacts(logger.run_id, "confusion_matrix/val-last.csv")
    assert Path(local).read_text().splitlines()[3] == "fox,0,1,1"
    picture = client.download_artifacts(logger.run_id, "confusion_matrix/val-last.png")
    assert Path(picture).read_bytes().startswith(b"\x89PNG")


@dashboard
def test_comet_holds_its_own_matrix(tmp_path: Path) -> None:
    comet = pytest.importorskip("comet_ml")

    class CometLogger:
        """Lightning's own one stores nothing with online=False: it disables the experiment."""

        experiment = comet.OfflineExperiment(
            api_key="none", offline_directory=str(tmp_path), log_code=False, log_graph=False,
            log_env_details=False, log_git_metadata=False, display_summary_level=0,
        )  # fmt: skip

    logger = CometLogger()
    assert write([logger], "val", result(), 20) == []
    assert write([logger], "val", many(), 40) == []
    logger.experiment.end()
    (archive,) = tmp_path.rglob("*.zip")
    with zipfile.ZipFile(archive) as file:
        assets = [
            file.read(name) for name in file.namelist() if name != "messages.json"
        ]
    matrices = [
        json.loads(a) for a in assets if a.startswith(b"{") and b'"rowLabel"' in a
    ]
    small = next(m for m in matrices if m["labels"] == ["cat", "dog", "fox"])
    assert small["matrix"] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert small["rowLabel"] == "true"
    assert {len(m["labels"]) for m in matrices} == {3, 50}
    assert any(b"confused_with" in a for a in assets)


@dashboard
def test_aim_holds_picture_and_table_at_their_step(tmp_path: Path) -> None:
    aim = pytest.importorskip("aim")
    from aim.pytorch_lightning import AimLogger
    from aim.storage.context import Context

    quiet = {
        "repo": str(tmp_path),
        "system_tracking_interval": None,
        "log_system_params": False,
    }
    logger = AimLogger(**quiet, capture_terminal_logs=False)
    assert write([logger], "val", result(), 20) == []
    assert write([logger], "val", result(), 40) == []
    run_hash = logger.experiment.hash
    logger.finalize("success")
    # A run that is opened read-only shows nothing until a server has indexed it.
    run = aim.Run(run_hash, **quiet, capture_terminal_logs=False)
    where = Context({"subset": "val"})
    images = run.get_image_sequence("confusion_matrix", where)
    steps, (pictures, *_) = images.data.items_list()
    assert list(steps) == [20, 40]
    assert pictures[0].to_pil_image().width > 200
    _, (texts, *_) = run.get_text_sequence("per_class", where).data.items_list()
    assert "most confused with" in texts[0].data


@dashboard
def test_trackio_holds_picture_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    from lightning.pytorch.loggers.logger import Logger

    class TrackioLogger(Logger):
        """As one writes it: Lightning has none yet."""

        name, version = "p", "n"

        def __init__(self) -> None:
            super().__init__()
            self.experiment = trackio.init(project="p", name="n", embed=False)

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            self.experiment.log(metrics, step=step)

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            pass

    logger = TrackioLogger()
    assert write([logger], "val", result(), 20) == []
    logger.experiment.finish()
    with sqlite3.connect(next(tmp_path.rglob("p.db"))) as store:
        ((step, logged),) = store.execute(
            "select step, metrics from metrics"
        ).fetchall()
    found = json.loads(logged)
    assert step == 20
    assert found["val/per_class"]["_value"][2]["confused_with"] == "dog"
    (picture,) = tmp_path.rglob("*.png")
    assert found["val/confusion_matrix"]["file_path"].endswith(picture.name)


@dashboard
def test_a_dashboard_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("litlogger")
    from lightning.pytorch.loggers.litlogger import LitLogger

    (failure,) = write([LitLogger(tmp_path, save_logs=False)], "val", result(), 20)
    assert failure.startswith("val: LitLogger did not take the confusion matrix: ")


def test_a_missing_package_is_one_sentence() -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")

    class WandbLogger:
        """A logger whose package is gone."""

    (failure,) = write([WandbLogger()], "val", result(), 20)
    assert failure == (
        "val: WandbLogger did not take the confusion matrix: "
        "ModuleNotFoundError: No module named 'wandb'"
    )


@pytest.mark.slow
def test_no_figure_is_open_after_a_hundred_epochs(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    for step in range(100):
        assert write([logger], "val", result(), step) == []
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o).__name__ == "FigureCanvasAgg"]
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


CHROMIUM = shutil.which("chromium")


@contextlib.contextmanager
def served(*command: str) -> Iterator[str]:
    """The address of a server that is started with ``--port`` on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A session of its own: servers have workers, which are to end with them.
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(120):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def colours_of(address: str, folder: Path) -> dict[tuple[int, int, int], int]:
    """How often each colour stands on the page, as a browser draws it."""
    from PIL import Image

    picture = folder / "page.png"
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
        "--virtual-time-budget=60000", f"--user-data-dir={folder / 'profile'}",
        f"--screenshot={picture}", address,
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    with Image.open(picture) as page:
        found = page.convert("RGB").getcolors(page.width * page.height)
    return {colour: n for n, colour in found}


def shows_the_matrix(colours: dict[tuple[int, int, int], int]) -> bool:
    # 100 % on the diagonal, the strongest error
    right, wrong = (11, 37, 69), (127, 39, 4)
    return colours.get(right, 0) > 5000 and colours.get(wrong, 0) > 2500


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which .ci/run installs")
def test_tensorboards_page_shows_the_matrix(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "logs")
    with served("tensorboard.main", "--logdir", str(tmp_path / "logs")) as address:
        assert not shows_the_matrix(colours_of(f"{address}#images", tmp_path))
    write([logger], "val", result(), 20)
    logger.finalize("success")
    with served("tensorboard.main", "--logdir", str(tmp_path / "logs")) as address:
        assert shows_the_matrix(colours_of(f"{address}#images", tmp_path))


@dashboard
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which .ci/run installs")
def test_mlflows_page_shows_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow.server")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger(
        tracking_uri=uri, artifact_location=str(tmp_path / "artifacts")
    )
    write([logger], "val", result(), 20)
    page = f"#/experiments/{logger.experiment_id}/runs/{logger.run_id}/artifacts/confusion_matrix/"
    with served(
        "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"
    ) as address:
        assert shows_the_matrix(colours_of(f"{address}{page}val-last.png", tmp_path))
