"""EvalGuardCallback on the Trainer of transformers: what it finds, counts and leaves alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    multilabel_confusion_matrix,
)
from torch import nn
from torch.utils.data import Dataset

import lightning_evalguard
from lightning_evalguard import ConfusionMetrics, EvalGuardError, EvalGuardWarning

pytest.importorskip("accelerate")
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lightning_evalguard.huggingface import EvalGuardCallback

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pin_memory.*"
)
CLASSES = 3


class Texts(Dataset):
    """Token ids, each text labelled by its first word; `labels` may be of any kind."""

    def __init__(
        self, n: int = 21, seed: int = 0, kind: str = "sequence", length: int = 7
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, 50, (n, length), generator=g)
        if kind == "tokens":
            self.labels = self.ids % CLASSES
            self.labels[:, 0] = self.labels[::2, -1] = -100
        elif kind == "multilabel":
            self.labels = torch.stack(
                [(self.ids[:, 0] % k == 0).float() for k in (2, 3, 5)], 1
            )
        elif kind == "regression":
            self.labels = self.ids[:, 0].float()
        else:
            self.labels = self.ids[:, 0] % CLASSES

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = self.ids[i]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": self.labels[i],
        }


def config(**options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        **{"num_labels": CLASSES, **options},
    )


class Classifier(nn.Module):
    """A plain module: what is wrong with it is said by its keywords."""

    def __init__(self, **faults: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm = nn.Embedding(50, 8), nn.BatchNorm1d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, CLASSES)
        self.register_buffer("count", torch.zeros(()))
        self.faults = faults

    def forward(
        self, input_ids: Any, attention_mask: Any = None, labels: Any = None
    ) -> Any:
        hidden = self.norm(self.words(input_ids).mean(1))
        if self.faults.get("functional_dropout"):
            hidden = nn.functional.dropout(hidden, 0.5)
        if self.faults.get("writes") and not self.training:
            self.count += 1
        if self.faults.get("wakes") and not self.training:
            self.drop.train()
        if self.faults.get("graph") and not self.training:
            with torch.enable_grad():
                logits = self.head(self.drop(hidden))
        else:
            logits = self.head(self.drop(hidden))
        loss = (
            nn.functional.cross_entropy(logits, labels) if labels is not None else None
        )
        return {"loss": loss, "logits": logits}


Make = Callable[..., Trainer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def trainer(
        model: nn.Module, *callbacks: Any, kind: Any = Trainer, **options: Any
    ) -> Trainer:
        torch.set_num_threads(1)
        ours = {"compute_metrics", "train_dataset", "eval_dataset"}
        given = {k: options.pop(k) for k in ours & options.keys()}
        arguments = {
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "eval_strategy": "epoch",
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "logging_steps": 2,
            **options,
        }
        if "eval_strategy" not in TrainingArguments.__dataclass_fields__:  # before 4.41
            arguments["evaluation_strategy"] = arguments.pop("eval_strategy")
        data = {"train_dataset": Texts(24, 1), "eval_dataset": Texts(21, 2), **given}
        return kind(
            model=model,
            args=TrainingArguments(**arguments),
            callbacks=list(callbacks),
            **data,
        )

    return trainer


def bert(kind: Any = BertForSequenceClassification, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = kind(config(**options))
    assert isinstance(model, nn.Module)
    return model


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


# --- honest runs ---------------------------------------------------------------------------------


def test_a_guarded_run_is_the_bare_run_bit_for_bit_and_says_nothing(
    make: Make, recwarn: pytest.WarningsRecorder
) -> None:
    runs = []
    for callbacks in ([], [guard := EvalGuardCallback()]):
        trainer = make(bert(), *callbacks, num_train_epochs=2)
        trainer.train()
        trainer.evaluate()
        runs.append(
            (
                trainer.model.state_dict(),
                trainer.state.log_history,
                torch.get_rng_state(),
            )
        )
    (weights, history, generator), (our_weights, our_history, our_generator) = runs
    assert all(torch.equal(weights[name], our_weights[name]) for name in weights)
    assert torch.equal(generator, our_generator)
    for bare, ours in zip(history, our_history, strict=True):
        timed = ("runtime", "per_second", "total_flos")
        same = {key for key in bare if not any(word in key for word in timed)}
        assert {key: bare[key] for key in same} == {key: ours[key] for key in same}
    assert guard.report.findings == []
    assert guard.report.checked["training_steps"] == 6
    assert guard.report.checked["evaluations"] == 3
    assert not [w for w in recwarn if issubclass(w.category, EvalGuardWarning)]


def test_nothing_of_the_guard_stays_on_the_trainer_once_the_callback_is_removed(
    make: Make,
) -> None:
    guard = EvalGuardCallback()
    trainer = make(bert(), guard)
    assert "evaluation_loop" in vars(trainer)
    trainer.remove_callback(guard)
    assert "eval_accuracy" not in trainer.evaluate()
    assert (
        not {"train", "evaluation_loop", "prediction_step", "compute_loss"}
        & vars(trainer).keys()
    )


def test_a_callback_that_is_added_later_says_what_it_missed(make: Make) -> None:
    guard = EvalGuardCallback()
    trainer = make(bert())
    trainer.add_callback(guard)
    trainer.evaluate()
    assert "was not guarded" in guard.report.notes[0]
    assert "eval_accuracy" in trainer.evaluate()
    late = EvalGuardCallback()
    trainer = make(bert())
    trainer.add_callback(late)
    trainer.train()
    assert late.report.checked["evaluations"] == 1
    assert late.report.notes[:1] != guard.report.notes[:1]


def test_one_trainer_has_one_guard(make: Make) -> None:
    first, second = EvalGuardCallback(weights="ignore"), EvalGuardCallback()
    trainer = make(bert(), first)
    trainer.add_callback(second)
    trainer.train()
    assert first.report.checked["evaluations"] == 1
    assert second.report.notes == [
        "another EvalGuardCallback guards this Trainer already"
    ]


# --- the matrix ----------------------------------------------------------------------------------


def test_the_scores_of_a_text_classifier_are_sklearns(make: Make) -> None:
    guard = EvalGuardCallback(weights="ignore")
    trainer = make(bert(), guard)
    metrics = trainer.evaluate()
    predicted = trainer.predict(Texts(21, 2))
    target, preds = predicted.label_ids, predicted.predictions.argmax(1)
    expected = confusion_matrix(target, preds, labels=range(CLASSES)).tolist()
    for stage in ("eval", "test"):
        assert guard.report.confusion[stage].matrix.tolist() == expected
    f1 = f1_score(target, preds, average="macro")
    assert metrics["eval_f1_macro"] == pytest.approx(f1)
    assert predicted.metrics["test_f1_macro"] == pytest.approx(f1)
    assert trainer.state.log_history[-1]["eval_f1_macro"] == pytest.approx(f1)


@pytest.mark.parametrize("length", [7, CLASSES])  # as many tokens as classes, too
def test_tokens_that_are_ignored_are_not_counted(make: Make, length: int) -> None:
    guard, data = EvalGuardCallback(weights="ignore"), Texts(21, 2, "tokens", length)
    trainer = make(bert(BertForTokenClassification), guard, eval_dataset=data)
    trainer.evaluate()
    predicted = trainer.predict(data)
    target, preds = (
        predicted.label_ids.ravel(),
        predicted.predictions.argmax(-1).ravel(),
    )
    kept = target != -100
    expected = confusion_matrix(target[kept], preds[kept], labels=range(CLASSES))
    assert guard.report.confusion["eval"].matrix.tolist() == expected.tolist()
    assert guard.report.confusion["eval"].ignored == int((~kept).sum())


def test_several_labels_a_text_are_counted_one_by_one(make: Make) -> None:
    guard, data = EvalGuardCallback(weights="ignore"), Texts(21, 2, "multilabel")
    model = bert(problem_type="multi_label_classification")
    trainer = make(model, guard, eval_dataset=data)
    metrics = trainer.evaluate()
    predicted = trainer.predict(data)
    preds = predicted.predictions > 0
    expected = multilabel_confusion_matrix(predicted.label_ids, preds)
    assert guard.report.confusion["eval"].matrix.tolist() == expected.tolist()
    f1 = f1_score(predicted.label_ids, preds, average="macro", zero_division=0)
    assert metrics["eval_f1_macro"] == pytest.approx(f1)


def test_a_regression_has_no_matrix(make: Make) -> None:
    guard, data = EvalGuardCallback(weights="ignore"), Texts(21, 2, "regression")
    metrics = make(bert(num_labels=1), guard, eval_dataset=data).evaluate()
    assert guard.report.confusion == {}
    assert "eval_accuracy" not in metrics
    assert any("regression" in note for note in guard.report.notes)


def test_classes_have_the_names_of_the_configuration(make: Make) -> None:
    guard = EvalGuardCallback(weights="ignore")
    make(bert(id2label={0: "ham", 1: "spam", 2: "news"}), guard).evaluate()
    assert guard.report.confusion["eval"].class_names == ("ham", "spam", "news")


def test_a_key_of_compute_metrics_is_never_overwritten(make: Make) -> None:
    guard = EvalGuardCallback(weights="ignore")
    computed = {"f1_macro": 0.123, "accuracy": 0.0}

    def scores(predicted: Any) -> dict[str, float]:
        computed["accuracy"] = accuracy_score(
            predicted.label_ids, predicted.predictions.argmax(1)
        )
        return computed

    trainer = make(bert(), guard, compute_metrics=scores)
    with pytest.warns(EvalGuardWarning, match="eval_f1_macro"):
        metrics = trainer.evaluate()
    assert metrics["eval_f1_macro"] == 0.123
    assert metrics["eval_accuracy"] == computed["accuracy"]
    assert [finding.subject for finding in guard.report.findings] == ["eval_f1_macro"]


def test_what_is_counted_may_be_said(make: Make) -> None:
    guard = EvalGuardCallback(
        weights="ignore", metrics=ConfusionMetrics(class_names=["a", "b", "c"])
    )
    make(bert(), guard).evaluate()
    assert guard.report.confusion["eval"].class_names == ("a", "b", "c")
    none = EvalGuardCallback(weights="ignore", metrics=None)
    assert "eval_accuracy" not in make(bert(), none).evaluate()


def test_each_of_several_evaluation_sets_has_its_matrix(make: Make) -> None:
    guard = EvalGuardCallback(weights="ignore")
    sets = {"clean": Texts(21, 2), "noisy": Texts(13, 3)}
    metrics = make(bert(), guard, eval_dataset=sets).evaluate()
    assert guard.report.confusion["eval_clean"].total == 21
    assert guard.report.confusion["eval_noisy"].total == 13
    assert {"eval_clean_f1_macro", "eval_noisy_f1_macro"} <= metrics.keys()


# --- the choice of a best model ------------------------------------------------------------------


def test_the_best_model_is_chosen_by_a_score_of_the_matrix(make: Make) -> None:
    guard = EvalGuardCallback()
    trainer = make(
        bert(),
        guard,
        num_train_epochs=2,
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="f1_macro",
        learning_rate=5e-3,
    )
    trainer.train()
    history = [entry["eval_f1_macro"] for entry in trainer.state.log_history
               if "eval_f1_macro" in entry]  # fmt: skip
    assert trainer.state.best_metric == max(history)
    assert guard.report.findings == []


@pytest.mark.parametrize("metric", ["f1_macro", "error_rate"])
def test_a_best_model_that_is_the_worst_is_found(make: Make, metric: str) -> None:
    guard = EvalGuardCallback()
    trainer = make(
        bert(),
        guard,
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=metric == "error_rate",
        compute_metrics=lambda predicted: {"error_rate": 0.5},
    )
    right = metric == "f1_macro"
    with pytest.warns(EvalGuardWarning, match=f"greater_is_better={right}"):
        trainer.train()
    (finding,) = guard.report.findings
    assert (finding.check, finding.subject) == ("selection", f"eval_{metric}")


# --- modes ---------------------------------------------------------------------------------------


class StopsError(Exception):
    """Raised by a test."""


class Breaks(Trainer):
    """Its evaluation ends in an exception."""

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        raise StopsError


@pytest.mark.parametrize("kind", [Trainer, Breaks])
@pytest.mark.parametrize("predicts", [False, True])
def test_each_module_has_after_an_evaluation_the_mode_it_had_before(
    make: Make, kind: Any, predicts: bool
) -> None:
    model = Classifier()
    model.train()
    model.norm.eval()
    before = flags(model)
    trainer = make(model, EvalGuardCallback(weights="ignore"), kind=kind)
    try:
        trainer.predict(Texts()) if predicts else trainer.evaluate()
    except StopsError:
        assert kind is Breaks
    assert flags(model) == before
    assert torch.is_grad_enabled()


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="a bare `raise` puts its own frame back there"
)
@pytest.mark.parametrize("entry", ["train", "evaluate", "predict"])
def test_an_error_leaves_the_trainer_without_frames_of_ours(
    make: Make, entry: str
) -> None:
    trainer = make(Classifier(), EvalGuardCallback(weights="ignore"), kind=Breaks)
    given = (Texts(),) if entry == "predict" else ()
    with pytest.raises(StopsError) as raised:
        getattr(trainer, entry)(*given)
    files = [Path(f.filename) for f in traceback.extract_tb(raised.value.__traceback__)]
    assert [f.name for f in files[:1] + files[-1:]] == [Path(__file__).name] * 2
    ours = Path(lightning_evalguard.__file__).parent
    assert [f for f in files if f.is_relative_to(ours)] == []


@pytest.mark.parametrize("options", [{}, {"eval_on_start": True}])
def test_a_frozen_encoder_that_the_trainer_wakes_and_evaluates_is_no_finding(
    make: Make, recwarn: pytest.WarningsRecorder, options: dict[str, Any]
) -> None:
    if options.keys() - TrainingArguments.__dataclass_fields__.keys():
        pytest.skip("this version of transformers has no such argument")
    guard, model = EvalGuardCallback(), bert()
    model.eval()  # as `from_pretrained` leaves it
    model.bert.requires_grad_(False)
    make(model, guard, num_train_epochs=2, **options).train()
    assert guard.report.findings == []
    assert not [w for w in recwarn if issubclass(w.category, EvalGuardWarning)]


class LogsItsMode(Trainer):
    """As in trl: what is logged depends on the mode in which an evaluation left the model."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "eval_loss" in logs:
            logs["eval_is_training"] = float(self.model.training)
        super().log(logs, *args, **kwargs)


@pytest.mark.filterwarnings("ignore::lightning_evalguard.EvalGuardWarning")
def test_what_the_trainer_logs_by_its_mode_is_what_the_bare_one_logs(
    make: Make,
) -> None:
    modes = []
    for guards in ([], [EvalGuardCallback()]):
        model = bert()
        trainer = make(model, *guards, kind=LogsItsMode)
        trainer.train()
        logged = [entry["eval_is_training"] for entry in trainer.state.log_history
                  if "eval_is_training" in entry]  # fmt: skip
        modes.append((logged, trainer.evaluate()["eval_is_training"]))
    assert modes[0] == modes[1] == ([0.0], 0.0)
    assert all(flags(model).values())


def test_a_loop_that_is_called_by_itself_puts_back_every_mode(make: Make) -> None:
    model = bert()
    model.bert.eval()
    before = flags(model)
    trainer = make(model, EvalGuardCallback(weights="ignore"))
    trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation")
    assert flags(model) == before


def test_a_frozen_batch_norm_whose_statistics_the_trainer_moves_is_found(
    make: Make,
) -> None:
    guard, model = EvalGuardCallback(modes="warn"), Classifier()
    model.norm.eval().requires_grad_(False)
    trainer = make(model, guard)
    trainer.model_accepts_loss_kwargs = False
    with pytest.warns(
        EvalGuardWarning, match=r"`norm` \(BatchNorm1d\): is frozen but in train"
    ):
        trainer.train()


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing_factor": 0.1},
        {"gradient_accumulation_steps": 2, "eval_accumulation_steps": 1},
        {"gradient_checkpointing": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_ways_to_train_are_counted_and_silent(
    make: Make, recwarn: pytest.WarningsRecorder, options: dict[str, Any]
) -> None:
    guard = EvalGuardCallback()
    make(bert(), guard, **options).train()
    assert guard.report.confusion["eval"].total == 21
    assert guard.report.findings == []
    assert not [w for w in recwarn if issubclass(w.category, EvalGuardWarning)]


# --- what evaluations must not do ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "check", "line"),
    [
        ("functional_dropout", "stochastic", "nn.functional.dropout(hidden, 0.5)"),
        ("writes", "state", "self.count += 1"),
        ("wakes", "modes", "self.drop.train()"),
        ("graph", "grad", "torch.enable_grad()"),
    ],
)
def test_a_violation_is_found_with_its_line_at_the_first_step(
    make: Make, fault: str, check: str, line: str
) -> None:
    guard = EvalGuardCallback(weights="ignore")
    trainer = make(Classifier(**{fault: True}), guard)
    with pytest.raises(EvalGuardError) as raised:
        trainer.evaluate()
    (finding,) = guard.report.findings
    assert finding.check == check
    assert line in (finding.expression or ""), finding
    assert "EvalGuardCallback(" in str(raised.value)
    assert trainer.model.training
    assert torch.is_grad_enabled()


def test_a_finding_is_silent_where_it_is_allowed_or_only_warned_of(make: Make) -> None:
    allowed = EvalGuardCallback(
        weights="ignore", allow={"stochastic": ["*"]}, batch="ignore"
    )
    make(Classifier(functional_dropout=True), allowed).evaluate()
    assert allowed.report.findings == []
    warns = EvalGuardCallback(weights="ignore", state="warn")
    with pytest.warns(EvalGuardWarning, match="count"):
        make(Classifier(writes=True), warns).train()


class Wakes(TrainerCallback):
    """Puts dropout back in train mode in the midst of an evaluation."""

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, **kwargs: Any
    ) -> None:
        kwargs["model"].drop.train()


def test_a_callback_that_wakes_dropout_is_found_within_training(make: Make) -> None:
    guard = EvalGuardCallback()
    with pytest.raises(EvalGuardError, match=r"`drop` \(Dropout\).*is in train mode"):
        make(Classifier(), guard, Wakes()).train()
    (finding,) = guard.report.findings
    assert finding.stage == "validate"
    assert finding.expression == 'kwargs["model"].drop.train()'


def test_an_exception_in_training_leaves_nothing_open(make: Make) -> None:
    guard = EvalGuardCallback()
    trainer = make(Classifier(), guard, kind=Breaks)
    with pytest.raises(StopsError):
        trainer.train()
    assert nn.functional.cross_entropy.__module__ == "torch.nn.functional"
    assert "eval_accuracy" not in guard.report.confusion
    with pytest.raises(StopsError):
        trainer.evaluate()


class Forgets(Trainer):
    """Its own prediction step has no `no_grad`."""

    def prediction_step(
        self,
        model: Any,
        inputs: Any,
        prediction_loss_only: Any,
        ignore_keys: Any = None,
    ) -> Any:
        outputs = model(**inputs)
        return outputs["loss"], outputs["logits"], inputs["labels"]


class Remembers(Forgets):
    """The honest twin."""

    @torch.no_grad()
    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().prediction_step(*args, **kwargs)


def test_a_prediction_step_of_ones_own_that_records_a_graph_is_found(
    make: Make,
) -> None:
    guard = EvalGuardCallback(weights="ignore")
    with pytest.raises(EvalGuardError, match="autograd graph"):
        make(Classifier(), guard, kind=Forgets).evaluate()
    honest = EvalGuardCallback(weights="ignore")
    metrics = make(Classifier(), honest, kind=Remembers).evaluate()
    assert honest.report.findings == []
    assert "eval_accuracy" in metrics


# --- arguments -----------------------------------------------------------------------------------


def test_arguments_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="train_score"):
        EvalGuardCallback(train_score=2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="modes='loud'"):
        EvalGuardCallback(modes="loud")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allow"):
        EvalGuardCallback(allow={"mode": ["x"]})


# --- two processes -------------------------------------------------------------------------------


def two_ranks(folder: str) -> None:
    """What each of two processes runs: one evaluation whose last round is padded."""
    torch.set_num_threads(1)
    guard = EvalGuardCallback(weights="ignore")
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        per_device_eval_batch_size=4,
        disable_tqdm=True,
        ddp_backend="gloo",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=bert(), args=arguments, eval_dataset=Texts(21, 2), callbacks=[guard],
        compute_metrics=lambda p: {"own": accuracy_score(p.label_ids, np.argmax(p.predictions, 1))},
    )  # fmt: skip
    metrics = trainer.evaluate()
    matrix = guard.report.confusion["eval"].matrix
    assert matrix is not None
    said = {
        "matrix": matrix.tolist(),
        "accuracy": metrics["eval_accuracy"],
        "own": metrics["eval_own"],
        "findings": [str(finding) for finding in guard.report.findings],
    }
    Path(folder, f"{arguments.process_index}.json").write_text(json.dumps(said))


@pytest.mark.slow
def test_two_ranks_count_each_sample_once(make: Make, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = f"import test_huggingface as t; t.two_ranks({str(tmp_path)!r})"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": path,
                 "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    alone = make(bert()).predict(Texts(21, 2))
    expected = confusion_matrix(
        alone.label_ids, alone.predictions.argmax(1), labels=range(CLASSES)
    ).tolist()
    for rank in range(2):
        said = json.loads(Path(tmp_path, f"{rank}.json").read_text())
        assert said["matrix"] == expected
        assert said["accuracy"] == said["own"]
        assert said["findings"] == []
