"""The record: whole, equal when reloaded, one file a writer, without secrets, never in the way."""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_evalguard import (
    ConfusionMetrics,
    EvalGuard,
    EvalGuardError,
    EvalGuardWarning,
    Report,
)
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.data.fingerprint import Content, whole
from lightning_evalguard.data.loaders import owned
from lightning_evalguard.record import files as _files
from lightning_evalguard.record import ledger, provenance
from lightning_evalguard.record import run as record
from lightning_evalguard.record.plain import MASK, plain
from models import modes as zoo
from models.scored import Scored

Make = Callable[..., pl.Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory")


class Awake(Scored):
    """Evaluates in train mode."""

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        self.train()
        return super().validation_step(batch, batch_idx)

    test_step = validation_step


def written(folder: str | Path, name: str = "evalguard.json") -> Any:
    return json.loads((Path(folder) / name).read_text(encoding="utf-8"))


def ours(told: Any) -> list[Any]:
    return [
        warning for warning in told if issubclass(warning.category, EvalGuardWarning)
    ]


@pytest.fixture
def logged(trainer: Make, tmp_path: Path) -> Make:
    """A trainer that logs to ``tmp_path/lightning_logs/version_N``."""

    def make(**kwargs: Any) -> pl.Trainer:
        return trainer(logger=CSVLogger(tmp_path), log_every_n_steps=1, **kwargs)

    return make


# What is written


def test_a_fit_and_the_test_after_it_stand_in_one_file(logged: Make) -> None:
    guard, module = EvalGuard(), Scored()
    run = logged(callbacks=[guard], max_epochs=2)
    run.fit(module, zoo.loader(), zoo.loader(seed=1))
    run.test(module, zoo.loader(24, seed=2), verbose=False)
    said = written(run.log_dir)
    fit, test = said["runs"]
    assert (fit["run"], test["run"]) == ("fit", "test")
    assert fit["evaluated_on"]["val"]["samples"] == 32
    assert test["evaluated_on"]["test"]["samples"] == 24
    assert [h["epoch"] for h in fit["history"]] == [0, 1]
    assert {"val/loss", "val/accuracy"} <= set(fit["history"][0]["scores"])
    assert (
        fit["confusion"]["val"]["matrix"]
        == guard.report.confusion["val"].matrix.tolist()
    )
    assert fit["precision"] == "32-true"
    assert fit["error"] is None
    assert fit["versions"]["torch"] == torch.__version__


def test_a_record_loads_into_an_equal_report(logged: Make) -> None:
    guard = EvalGuard(modes="warn", state="warn", batch="warn", stochastic="warn")
    run = logged(callbacks=[guard])
    with pytest.warns(EvalGuardWarning):
        run.fit(Awake(), zoo.loader(), zoo.loader(seed=1))
    loaded = Report.load(Path(run.log_dir) / "evalguard.json")
    assert guard.report.findings
    assert loaded == guard.report
    assert str(loaded) == str(guard.report)
    loaded.findings.pop()
    assert loaded != guard.report


@pytest.mark.parametrize(
    "task", ["multiclass", "binary", "multilabel", "many classes", "empty"]
)
def test_every_kind_of_result_survives(task: str) -> None:
    torch.manual_seed(0)
    if task == "multilabel":
        state = ConfusionMatrix(3, "multilabel", preds_are="probs")
        state.update(torch.rand(20, 3), torch.randint(2, (20, 3)))
    else:
        classes = {"binary": 2, "many classes": 30}.get(task, 4)
        state = ConfusionMatrix(classes, full=task != "many classes")
        n = 0 if task == "empty" else 200
        state.update(torch.randint(classes, (n,)), torch.randint(classes, (n,)))
    report = Report()
    report.confusion["test"] = state.result()
    again = Report.from_dict(json.loads(_files.json_text(report.to_dict())))
    assert again == report
    assert str(again) == str(report)
    assert again.confusion["test"].most_confused() == state.result().most_confused()


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evalguard.json"
    for text in ("{", "[]", '{"report": {}}', '{"format": 99, "report": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"evalguard\.json is no record"):
            Report.load(path)


def test_a_run_that_a_finding_ended_is_on_record(logged: Make) -> None:
    run = logged(callbacks=[EvalGuard()])
    with pytest.raises(EvalGuardError):
        run.validate(Awake(), zoo.loader(), verbose=False)
    said = written(run.log_dir)
    assert said["runs"][0]["error"].startswith("EvalGuardError: ")
    assert said["report"]["findings"][0]["check"] == "modes"


def test_the_checkpoint_is_named_and_hashed(logged: Make, tmp_path: Path) -> None:
    guard = EvalGuard()
    saved = ModelCheckpoint(tmp_path / "saved", monitor="val/loss")
    run = logged(callbacks=[guard, saved], enable_checkpointing=True)
    run.fit(Scored(), zoo.loader(), zoo.loader(seed=1))
    run.test(ckpt_path="best", dataloaders=zoo.loader(seed=2), verbose=False)
    fit, test = (r["checkpoint"] for r in written(run.log_dir)["runs"])
    digest = hashlib.sha256(Path(saved.best_model_path).read_bytes()).hexdigest()
    assert fit == {**test, "is": "best"}
    assert test["is"] == "loaded"
    assert test["sha256"] == digest


def test_a_large_checkpoint_is_hashed_in_parts_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "_WHOLE", 1000)
    monkeypatch.setattr(provenance, "_PART", 16)
    path = tmp_path / "large.ckpt"
    path.write_bytes(bytes(5000))
    one = provenance._hashed(path)
    path.write_bytes(bytes(4999) + b"x")
    other = provenance._hashed(path)
    assert set(one) == {"bytes", "sha256_of_64_parts"}
    assert one != other
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "a").write_bytes(b"1")
    assert provenance._hashed(tmp_path / "sharded")["bytes"] == 1


# Where it is written


def test_without_a_logger_nothing_is_written(trainer: Make, tmp_path: Path) -> None:
    trainer(callbacks=[EvalGuard()]).fit(Scored(), zoo.loader(), zoo.loader(seed=1))
    assert list(tmp_path.iterdir()) == []


def test_a_trial_run_writes_nothing(trainer: Make, tmp_path: Path) -> None:
    run = trainer(
        callbacks=[EvalGuard(record=str(tmp_path / "here"))], fast_dev_run=True
    )
    run.fit(Scored(), zoo.loader(), zoo.loader(seed=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_barebones_run_writes_nothing(tmp_path: Path) -> None:
    run = pl.Trainer(
        accelerator="cpu", barebones=True, max_epochs=1, default_root_dir=tmp_path,
        callbacks=[EvalGuard(record=str(tmp_path / "here"))],
    )  # fmt: skip
    run.fit(Scored(), zoo.loader(), zoo.loader(seed=1))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_be_named_and_none_switches_it_off(
    trainer: Make, logged: Make, tmp_path: Path
) -> None:
    run = trainer(callbacks=[EvalGuard(record=str(tmp_path / "here"))])
    run.validate(Scored(), zoo.loader(), verbose=False)
    assert written(tmp_path / "here")["runs"][0]["run"] == "validate"
    off = logged(callbacks=[EvalGuard(record=None)])
    off.validate(Scored(), zoo.loader(), verbose=False)
    assert not list(Path(off.log_dir).glob("evalguard*"))


def test_predict_alone_writes_nothing(logged: Make) -> None:
    run = logged(callbacks=[EvalGuard()])
    run.predict(Scored(), zoo.loader())
    assert not list(Path(run.log_dir).glob("evalguard*"))


def test_a_logger_without_a_log_dir_has_it_beside_its_checkpoints(
    tmp_path: Path,
) -> None:
    class Remote:
        save_dir, name, version = str(tmp_path), "project", 3

    assert record._folder_of(Remote()) == tmp_path / "project" / "version_3"
    assert (
        record._folder_of(TensorBoardLogger(tmp_path, name="tb"))
        == tmp_path / "tb/version_0"
    )
    assert record._folder_of(object()) is None


def test_a_second_guard_in_the_same_folder_has_its_own_file(logged: Make) -> None:
    run = logged(callbacks=[EvalGuard(), EvalGuard()])
    run.validate(Scored(), zoo.loader(), verbose=False)
    assert [
        len(written(run.log_dir, f)["runs"])
        for f in ("evalguard.json", "evalguard-2.json")
    ]
    assert not list(Path(run.log_dir).glob(".evalguard*"))


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    )


def test_two_processes_never_write_the_same_file(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from lightning_evalguard.record import files as _files
        while not Path(sys.argv[1], "go").exists():
            time.sleep(0.001)
        for i in range(20):
            _files.write_new(Path(sys.argv[1]), "evalguard", f"{sys.argv[2]} {i}")
    """
    both = [python(code, tmp_path, name) for name in "ab"]
    (tmp_path / "go").touch()
    assert [p.wait(60) for p in both] == [0, 0]
    texts = [p.read_text() for p in tmp_path.glob("evalguard*.json")]
    assert sorted(texts) == sorted(f"{name} {i}" for name in "ab" for i in range(20))


def test_a_file_system_without_hard_links_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    paths = [_files.write_new(tmp_path, "evalguard", text) for text in "ab"]
    assert [p.read_text() for p in paths] == ["a", "b"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_killed_while_it_writes_leaves_the_old_file(
    moment: str, tmp_path: Path
) -> None:
    path = tmp_path / "evalguard.json"
    path.write_text("old")
    code = """
        import os, signal, sys
        from pathlib import Path
        from lightning_evalguard.record import files as _files
        setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        _files.write_over(Path(sys.argv[1]), "new" * 100000)
    """
    assert python(code, path, moment).wait(60) == -signal.SIGKILL
    assert path.read_text() == "old"
    _files.write_over(path, "new")
    assert path.read_text() == "new"


def test_what_cannot_be_written_costs_one_warning(
    trainer: Make, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    guard = EvalGuard(record=str(tmp_path / "file" / "below"))
    run = trainer(callbacks=[guard])
    with pytest.warns(
        EvalGuardWarning, match=r"evalguard\.json was not written"
    ) as told:
        run.fit(Scored(), zoo.loader(), zoo.loader(seed=1))
        run.validate(Scored(), zoo.loader(seed=1), verbose=False)
    assert len(ours(told)) == 1
    assert run.state.finished


# Secrets


@pytest.mark.parametrize(
    "name",
    ["api_key", "apiKey", "token", "HF_TOKEN", "password", "db_passwd", "client_secret", "auth",
     "credentials", "private_key", "cookie", "passphrase"],
)  # fmt: skip
def test_what_is_named_like_a_secret_is_masked_at_any_depth(name: str) -> None:
    value = "hunter2"
    shown = json.dumps(
        plain({"a": [{"b": {name: value}}], name: {"inner": value}, "c": 1})
    )
    assert value not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "value",
    [
        {"headers": {"Authorization": "Bearer hunter2hunter2"}},
        {"Proxy-Authorization": "hunter2"},
        {"headers": [("Authorization", "hunter2"), ("Accept", "text/html")]},
        {"header": {"name": "X-Api-Key", "value": "hunter2"}},
        "Authorization: Basic hunter2hunter2",
        "curl -H 'Authorization: Bearer hunter2hunter2' https://host",
        "https://hunter2@github.com/a/b.git",
        "https://me:hunter2@github.com/a/b.git",
        "https://host/x?lr=1&access_token=hunter2&page=2",
        ["train.py", "--api-key", "hunter2", "--lr", "0.1"],
        ["train.py", "--password=hunter2"],
        "python train.py --token hunter2 --lr 0.1",
        "Server=db;Database=x;Uid=me;Pwd=hunter2;",
        "host=db port=5432 user=me password='hunter2' dbname=x",
        'DefaultEndpointsProtocol=https;AccountName=a;AccountKey="hunter2=="',
        json.dumps({"hub": {"token": ["hunter2"]}}),
        'settings: {"password": "hunter2", "user": "me"}',
        "export WANDB_API_KEY=hunter2",
        "hf_hunter2hunter2", "sk-hunter2hunter2", "ghp_hunter2hunter2", "glpat-hunter2hunter2",
        "github_pat_hunter2hunter2", "xoxb-hunter2hunter2",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
        {"pass": "hunter2"}, {"db_pass": "hunter2"}, {"pw": "hunter2"}, {"userPin": "hunter2"},
        {"pass": {"of": "hunter2"}}, {"settings": argparse.Namespace(pw="hunter2")},
    ],
    ids=str,
)  # fmt: skip
def test_secrets_are_masked_in_every_form(value: Any) -> None:
    shown = json.dumps(plain({"given": value}))
    assert "hunter2" not in shown
    assert MASK in shown


def test_a_pin_is_a_secret_as_a_number_too() -> None:
    assert plain({"pin": 1234}) == {"pin": MASK}


@pytest.mark.parametrize(
    "text",
    ["token embedding of 512", "basic block", "a pass over the data", "lr=0.1",
     "max_tokens=512", "pin_memory=True", "https://host/path?page=2", "s3://bucket/a/b.ckpt",
     "author=A. Nother", "d_key=64", "C:\\data\\x", "[1, 2", '{"lr": 0.1}', "skip-connection",
     "sk_learn"],
)  # fmt: skip
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert plain({"given": text}) == {"given": text}


def test_hyper_parameters_are_not_taken_for_secrets() -> None:
    given: dict[str, Any] = {
        "lr": 0.1, "max_tokens": 512, "pad_token_id": 0, "num_keys": 4, "author": "A. Nother",
        "betas": (0.9, 0.99), "name": "resnet", "none": None, "flag": True, "pin_memory": True,
        "n_passes": 3, "num_pass": 2, "pin_memory_device": "cuda", "shopping": "x",
    }  # fmt: skip
    assert plain(given) == {**given, "betas": [0.9, 0.99]}


def test_what_is_no_plain_data_is_named_and_not_printed() -> None:
    class Client:
        def __repr__(self) -> str:
            return "Client(hunter2)"

    shown = plain(
        {
            "client": Client(), "act": torch.nn.ReLU, "dtype": torch.float32, "far": float("inf"),
            "at": "postgres://me:hunter2@host/db", "args": argparse.Namespace(lr=1, password="x"),
            "long": "x" * 1000,
        }
    )  # fmt: skip
    assert "hunter2" not in json.dumps(shown)
    assert shown["act"] == "<torch.nn.modules.activation.ReLU>"
    assert shown["dtype"] == "torch.float32"
    assert shown["args"] == {"lr": 1, "password": MASK}
    assert len(shown["long"]) == 200


def test_secrets_of_a_module_do_not_reach_the_file(logged: Make) -> None:
    class Hub(Scored):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.5, "hub": {"api_key": "hunter2"}})

    run = logged(callbacks=[EvalGuard()])
    run.validate(Hub(), zoo.loader(), verbose=False)
    text = (Path(run.log_dir) / "evalguard.json").read_text()
    assert "hunter2" not in text
    assert written(run.log_dir)["runs"][0]["hyper_parameters"]["lr"] == 0.5


# Which samples


def hashed(*batches: Any) -> Any:
    content = Content()
    for batch in batches:
        content.add(batch)
    return whole([content.part()])


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 5))
def test_neither_order_nor_batches_change_the_hash(
    seed: int, n: int, size: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    x, y = (
        torch.randn(n, 3, 5, 7, generator=make),
        torch.randint(4, (n,), generator=make),
    )
    order = torch.randperm(n, generator=make)
    batches = [(x[i], y[i]) for i in order.split(size)]
    assert hashed((x, y)) == hashed(*batches)
    assert hashed((x, y))["samples"] == n


def test_another_set_has_another_hash() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 40), torch.arange(8)
    seen = {
        hashed(batch)["hash"]
        for batch in (
            (x, y), (x, y.flip(0)), (x[:7], y[:7]), (x * 2, y), (torch.cat((x, x)), y.repeat(2)),
            {"image": x}, (x, ["a"] * 8), (x, ["b"] * 8), (x.double(), y), (x, y > 3),
        )
    }  # fmt: skip
    assert len(seen) == 10


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(4, 2).half(), torch.rand(4, 2).bfloat16(), torch.rand(4, 0), torch.tensor(3.0),
        [torch.rand(3, 5, 5), torch.rand(3, 6, 6)], (["a", "b"], [1, 2]),
        torch.zeros(2, 3, dtype=torch.uint16), torch.rand(2, 2).to(torch.complex64),
    ],
    ids=["float16", "bfloat16", "empty", "scalar", "uneven", "strings", "uint16", "complex"],
)  # fmt: skip
def test_any_tensors_have_a_hash(batch: Any) -> None:
    assert hashed(batch)["hash"] is not None


def test_what_cannot_be_hashed_is_said() -> None:
    assert hashed(object()) == {
        "samples": None, "hash": None, "hash_of": "ValueError: no tensor in the batch",
    }  # fmt: skip


def test_ranks_with_repeated_samples_give_the_hash_of_one_process() -> None:
    data = TensorDataset(torch.rand(11, 6), torch.arange(11))
    parts = []
    for rank in range(3):
        sampler = DistributedSampler(data, 3, rank, shuffle=False)
        loader = DataLoader(data, 2, sampler=sampler)
        content = Content(owned(loader))
        for batch in loader:
            content.add(batch)
        parts.append(content.part())
    assert whole(parts) == hashed(data[:])
    assert whole(parts)["samples"] == 11


def test_only_the_first_evaluation_of_a_stage_is_hashed(
    logged: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[int] = []
    monkeypatch.setattr(Content, "add", lambda self, batch: added.append(len(batch[1])))
    run = logged(callbacks=[EvalGuard()], max_epochs=3)
    run.fit(Scored(), zoo.loader(), zoo.loader(seed=1))
    assert sum(added) == 32


# Test-set uses


def test_the_third_use_of_a_test_set_is_told_with_the_runs(
    tmp_path: Path, trainer: Make
) -> None:
    def test_it(seed: int) -> Report:
        guard = EvalGuard(weights="ignore")  # nothing trains them here
        run = trainer(callbacks=[guard], logger=CSVLogger(tmp_path))
        run.test(Scored(), zoo.loader(seed=seed), verbose=False)
        return guard.report

    for seed in (1, 1, 2, 2):
        assert not [note for note in test_it(seed).notes if "times" in note]
    book = tmp_path / "lightning_logs" / ledger.LEDGER_NAME
    with book.open("a") as file:
        file.write('{"broken\n\n["no use"]\nnor this')
    with pytest.warns(EvalGuardWarning, match="was used 3 times") as told:
        notes = test_it(1).notes
    assert len(ours(told)) == 1
    (note,) = [n for n in notes if "times" in n]
    assert (
        "the test set of 32 samples was used 3 times, by version_0, version_1, version_4"
        in note
    )
    assert len(_files.read_lines(book)) == 5
    loaded = Report.load(tmp_path / "lightning_logs" / "version_4" / "evalguard.json")
    assert note in loaded.notes


def test_a_validation_is_no_use_of_a_test_set(tmp_path: Path, trainer: Make) -> None:
    for _ in range(3):
        run = trainer(callbacks=[EvalGuard()], logger=CSVLogger(tmp_path))
        run.validate(Scored(), zoo.loader(seed=1), verbose=False)
    assert not list(tmp_path.rglob(ledger.LEDGER_NAME))


def test_lines_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "uses.jsonl"
    code = """
        import json, sys
        from pathlib import Path
        from lightning_evalguard.record import files as _files
        for i in range(200):
            _files.append_line(Path(sys.argv[1]), json.dumps({"by": sys.argv[2] * 200, "i": i}))
    """
    both = [python(code, path, name) for name in "ab"]
    assert [p.wait(60) for p in both] == [0, 0]
    assert len(_files.read_lines(path)) == 400


def test_metrics_may_be_off(logged: Make) -> None:
    guard = EvalGuard(metrics=None)
    run = logged(callbacks=[guard])
    run.validate(Scored(), zoo.loader(), verbose=False)
    said = written(run.log_dir)["runs"][0]
    assert said["confusion"] == {}
    assert list(said["history"][0]["scores"]) == ["val/loss"]
    assert said["evaluated_on"]["val"]["samples"] == 32


def test_each_loader_has_its_own_set(logged: Make) -> None:
    metrics = ConfusionMetrics(num_classes=3)
    # nothing trains them
    run = logged(callbacks=[EvalGuard(metrics=metrics, weights="ignore")])
    run.test(Scored(), [zoo.loader(), zoo.loader(24, seed=3)], verbose=False)
    sets = written(run.log_dir)["runs"][0]["evaluated_on"]
    assert {k: v["samples"] for k, v in sets.items()} == {
        "test": 32,
        "test/dataloader_idx_1": 24,
    }


@pytest.mark.slow
def test_two_processes_leave_one_record_that_hashes_what_one_would(
    tmp_path: Path,
) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch, lightning.pytorch as pl\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from lightning.pytorch.loggers import CSVLogger\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from lightning_evalguard import EvalGuard\n"
        "from models.scored import Scored\n"
        "if __name__ == '__main__':\n"
        "    data = TensorDataset(torch.arange(132.0).view(33, 4), torch.arange(33) % 3)\n"
        "    pl.Trainer(accelerator='cpu', devices=2, strategy='ddp', callbacks=[EvalGuard()],\n"
        "        logger=CSVLogger('.'), enable_progress_bar=False,\n"
        "    ).test(Scored(), DataLoader(data, 5), verbose=False)\n"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", script], check=True, cwd=tmp_path, timeout=240
    )
    (path,) = tmp_path.rglob("evalguard*.json")
    (run,) = written(path.parent)["runs"]
    data = TensorDataset(torch.arange(132.0).view(33, 4), torch.arange(33) % 3)
    seen = run["evaluated_on"]["test"]
    assert {k: seen[k] for k in ("samples", "hash", "hash_of")} == hashed(data[:])
    assert run["world_size"] == 2
    (uses,) = tmp_path.rglob(ledger.LEDGER_NAME)
    assert len(_files.read_lines(uses)) == 1
