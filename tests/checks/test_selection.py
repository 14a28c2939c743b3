"""What is chosen by a score: the names that tell, the stories of several runs, and the remedies."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    Timer,
)
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard, EvalGuardWarning, Finding
from lightning_evalguard.checks.selection.direction import (
    by_matrix,
    by_name,
    is_of_test,
    words,
)

Make = Callable[..., pl.Trainer]
pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty"
)

HIGHER = """
    val_acc val/accuracy validAcc valacc ValidAccuracy val_Acc@1 top1 val_top5_acc val/acc_epoch
    val_auc val_AUROC roc_auc val/PR_AUC average_precision mAP val_mAP50 val/map_75 val_f1
    val_F1Score f1-macro val/f1_macro MulticlassF1Score BinaryAccuracy recall@10 NDCG@10 hits@3 MRR
    val_miou val/mIoU meanIoU dice val_dice_score jaccard mcc val_kappa qwk BLEU sacrebleu rougeL
    rouge1 psnr val/SSIM r2 R2Score explained_variance val_pearson spearmanr TPR true_positive_rate
    true_negative_rate negative_predictive_value episode_reward avg_return log_likelihood
    exact_match
    val_sensitivity specificity hit_rate val_pesq val/accuracy/dataloader_idx_1
"""
LOWER = """
    loss val_loss valloss valLoss val/loss_epoch validation_loss avg_val_loss val_dice_loss acc_loss
    val/iou_loss error val_err error_rate val_error_rate precision_error mse val_RMSE rmse MAE
    val_mape
    nll val_nll negative_log_likelihood neg_log_likelihood cross_entropy val_ce val/CrossEntropy bce
    perplexity val_ppl WER val_cer fid val/FID kid lpips brier ece val_ECE calibration_error
    hamming_loss
    hinge huber kl_div val_kl hausdorff hd95 EER fpr FNR false_positive_rate false_negatives regret
    crps log_loss logloss bits_per_byte edit_distance MeanSquaredError val_loss/dataloader_idx_0
"""
SILENT = """
    step epoch global_step lr lr-Adam learning_rate val_score score metric objective val neg_loss
    neg_mse -loss minus_loss 1-acc one_minus_acc inverse_acc acc_std f1_std loss_variance acc_gap
    loss_scale loss_weight codebook_perplexity vq/perplexity d_loss/discriminator_loss adv_acc
    loss_at_best_acc acc_vs_loss num_errors time val_time energy distance similarity
    attack_success_rate
    mia_auc random_acc forgetting loss_improvement entropy lossless accordion recalled grad_norm
"""


@pytest.mark.parametrize("key", HIGHER.split())
def test_a_name_says_that_higher_is_better(key: str) -> None:
    direction = by_name(key)
    assert direction is not None
    assert direction.mode == "max"


@pytest.mark.parametrize("key", LOWER.split())
def test_a_name_says_that_lower_is_better(key: str) -> None:
    direction = by_name(key)
    assert direction is not None
    assert direction.mode == "min"


@pytest.mark.parametrize("key", SILENT.split())
def test_a_name_says_nothing(key: str) -> None:
    assert by_name(key) is None


@settings(max_examples=50)
@given(st.text())
def test_any_name_is_read(key: str) -> None:
    assert isinstance(words(key), list)
    by_name(key)
    is_of_test(key)


@settings(max_examples=50)
@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_any_value_is_read(value: float, score: float) -> None:
    by_matrix(value, {"accuracy": score})


# --- programs of several runs ---------------------------------------------------------------------


class Net(pl.LightningModule):
    """Trains, and logs an honest loss and accuracy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(batch[0])
        self.log(
            "val_loss", F.cross_entropy(logits, batch[1]), batch_size=len(batch[1])
        )
        self.log(
            "val_acc",
            (logits.argmax(1) == batch[1]).float().mean(),
            batch_size=len(batch[1]),
        )
        return {"logits": logits, "target": batch[1]}

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def loader(n: int = 48, seed: int = 0) -> DataLoader[Any]:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=made)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8)


def chosen(guard: EvalGuard) -> list[Finding]:
    return [f for f in guard.report.findings if f.check == "selection"]


def quiet() -> EvalGuard:
    return EvalGuard(sync="ignore", data="ignore", weights="ignore", scores="ignore")


@pytest.fixture
def fitted(trainer: Make) -> Callable[..., tuple[EvalGuard, pl.Trainer]]:
    """``fitted(*callbacks, module=..., **kwargs)``: a guard and a trainer after a fit."""

    def run(
        *callbacks: Any, module: Any = None, ckpt_path: Any = None, **kwargs: Any
    ) -> tuple[EvalGuard, pl.Trainer]:
        guard = quiet()
        settings = {"callbacks": [*callbacks, guard], "max_epochs": 2, **kwargs}
        if any(isinstance(c, ModelCheckpoint) for c in callbacks):
            settings["enable_checkpointing"] = True
        made = trainer(**settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvalGuardWarning)
            made.fit(module or Net(), loader(), loader(seed=1), ckpt_path=ckpt_path)
        return guard, made

    return run


def test_honest_choosers_are_left_alone(
    fitted: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    guard, _ = fitted(
        ModelCheckpoint(
            monitor="val_loss", filename="{epoch}-{val_loss:.2f}-{val_acc:.2f}"
        ),
        ModelCheckpoint(monitor="val_acc", mode="max", save_top_k=2, save_last=True),
        ModelCheckpoint(
            monitor="step", mode="max", every_n_train_steps=2, save_top_k=-1
        ),
        ModelCheckpoint(monitor="epoch", mode="max"),
        ModelCheckpoint(monitor="train_loss", every_n_train_steps=2),
        ModelCheckpoint(monitor="train_loss_epoch", save_on_train_epoch_end=True),
        ModelCheckpoint(save_last=True),
        EarlyStopping("val_loss", stopping_threshold=1e-9, divergence_threshold=1e9),
        EarlyStopping("val_acc", mode="max"),
        EarlyStopping("train_loss_epoch", patience=9),
        OnExceptionCheckpoint(tmp_path / "crash"),
        Timer(),
        max_epochs=5,
    )
    assert chosen(guard) == []
    assert not [w for w in recwarn if "selection" in str(w.message)]
    assert not [n for n in guard.report.notes if "failed inside" in n]


def test_validations_within_an_epoch_are_left_alone(fitted: Any) -> None:
    guard, _ = fitted(
        ModelCheckpoint(monitor="val_loss", save_top_k=-1),
        EarlyStopping("val_loss", patience=9),
        val_check_interval=0.5,
        max_epochs=3,
    )
    assert chosen(guard) == []


def test_a_dry_run_chooses_nothing(fitted: Any) -> None:
    guard, _ = fitted(ModelCheckpoint(monitor="val_acc"), fast_dev_run=True)
    assert chosen(guard) == []


def test_folds_with_callbacks_of_their_own_are_left_alone(
    fitted: Any, tmp_path: Path
) -> None:
    for fold in range(3):
        guard, _ = fitted(
            ModelCheckpoint(tmp_path / f"{fold}", monitor="val_loss"),
            EarlyStopping("val_loss"),
        )
        assert chosen(guard) == []


def test_a_checkpoint_kept_from_the_fold_before_is_found(
    fitted: Any, tmp_path: Path
) -> None:
    checkpoint, stop = (
        ModelCheckpoint(tmp_path, monitor="val_loss"),
        EarlyStopping("val_loss"),
    )
    first, _ = fitted(checkpoint, stop)
    second, _ = fitted(checkpoint, stop)
    assert chosen(first) == []
    assert [f.subject for f in chosen(second)] == ["val_loss", "val_loss"]
    assert "from an earlier fit of another model" in chosen(second)[0].fact


def test_a_fit_that_goes_on_with_its_own_callbacks_is_left_alone(
    fitted: Any, tmp_path: Path
) -> None:
    checkpoint, module = ModelCheckpoint(tmp_path, monitor="val_loss"), Net()
    fitted(checkpoint, module=module)
    guard, _ = fitted(checkpoint, module=module, max_epochs=4)
    assert chosen(guard) == []


def test_a_fit_that_resumes_from_a_checkpoint_is_left_alone(
    fitted: Any, tmp_path: Path
) -> None:
    first = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    fitted(first)
    again = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    guard, _ = fitted(again, ckpt_path=first.last_model_path, max_epochs=4)
    assert chosen(guard) == []


def test_a_resumed_fit_that_saves_before_it_validates_is_found(
    fitted: Any, tmp_path: Path
) -> None:
    def steps() -> ModelCheckpoint:
        return ModelCheckpoint(
            tmp_path,
            monitor="val_loss",
            every_n_train_steps=12,
            save_top_k=-1,
            save_last=True,
        )

    first = steps()
    fitted(first)
    guard, _ = fitted(
        steps(),
        ckpt_path=first.last_model_path,
        max_epochs=4,
    )
    assert [f.subject for f in chosen(guard)] == ["val_loss"]
    assert "older than the weights" in chosen(guard)[0].fact


def test_a_score_logged_in_some_steps_alone_is_found(fitted: Any) -> None:
    class Sometimes(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if batch_idx % 5 == 0:
                self.log("batch_acc", loss.exp().neg(), on_step=True)
            return loss

    every = ModelCheckpoint(
        monitor="batch_acc", mode="max", every_n_train_steps=2, save_top_k=-1
    )
    guard, _ = fitted(every, module=Sometimes(), max_epochs=2)
    assert [f.subject for f in chosen(guard)] == ["batch_acc"]


@pytest.mark.parametrize(("n", "many"), [(2, False), (4, True)])
def test_testing_many_checkpoints_of_one_fit_is_found(
    fitted: Any, tmp_path: Path, n: int, many: bool
) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    _, made = fitted(checkpoint, max_epochs=n)
    guard = quiet()
    made.callbacks = [c for c in made.callbacks if not isinstance(c, EvalGuard)] + [
        guard
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        for path in checkpoint.best_k_models:
            made.test(Net(), loader(seed=2), ckpt_path=path, verbose=False)
            made.test(Net(), loader(seed=2), ckpt_path=path, verbose=False)
    assert bool(chosen(guard)) == many
    if many:
        assert chosen(guard)[0].fact.startswith("3 checkpoints of one fit")


def test_validating_many_checkpoints_is_left_alone(fitted: Any, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    guard, made = fitted(checkpoint, max_epochs=4)
    for path in checkpoint.best_k_models:
        made.validate(Net(), loader(seed=2), ckpt_path=path, verbose=False)
    made.test(Net(), loader(seed=3), ckpt_path="best", verbose=False)
    assert chosen(guard) == []


def test_best_scores_of_folds_are_tested_one_by_one(
    fitted: Any, tmp_path: Path
) -> None:
    for fold in range(4):
        checkpoint = ModelCheckpoint(tmp_path / f"fold{fold}", monitor="val_loss")
        guard, made = fitted(checkpoint)
        made.test(Net(), loader(seed=2), ckpt_path="best", verbose=False)
        assert chosen(guard) == []


def test_a_users_own_stop_is_a_chooser(fitted: Any) -> None:
    class Own(pl.Callback):
        def __init__(self) -> None:
            self.monitor, self.mode, self.patience = "val_acc", "min", 3

    guard, _ = fitted(Own(), LearningRateMonitor(), logger=True)
    assert [f.subject for f in chosen(guard)] == ["val_acc"]
    assert chosen(guard)[0].remedy.startswith(
        'Pass `Own(monitor="val_acc", mode="max")`.'
    )


def test_a_choice_by_chance_is_a_note(fitted: Any) -> None:
    guard, _ = fitted(
        ModelCheckpoint(monitor="val_acc", mode="max"),
        module=Net(),
        max_epochs=8,
        limit_val_batches=3,
    )
    assert chosen(guard) == []
    (note,) = [n for n in guard.report.notes if n.startswith("`val_acc`: its best")]
    assert "interval of the last" in note


# --- what is said, and that it helps --------------------------------------------------------------


def test_the_message_names_the_key_and_the_code(fitted: Any) -> None:
    guard, _ = fitted(ModelCheckpoint(monitor="val_acc"))
    (finding,) = chosen(guard)
    assert str(finding).startswith(
        '`val_acc`: ModelCheckpoint(mode="min") takes its lowest value for the best, expected the '
        "highest: its name says `acc`, of which higher is better. It keeps the worst model. "
        'Pass `ModelCheckpoint(monitor="val_acc", mode="max")`.'
    )


def test_it_is_found_before_the_first_batch(trainer: Make) -> None:
    guard = EvalGuard(selection="error")
    made = trainer(
        callbacks=[ModelCheckpoint(monitor="val_acc"), guard], enable_checkpointing=True
    )
    with pytest.raises(RuntimeError, match="takes its lowest value for the best"):
        made.fit(Net(), loader(), loader())
    assert guard.report.checked["batches"] == 0


def test_what_is_allowed_by_its_key_is_silent(trainer: Make) -> None:
    guard = EvalGuard(selection="error", allow={"selection": ["val_acc"]})
    made = trainer(
        callbacks=[ModelCheckpoint(monitor="val_acc"), guard], enable_checkpointing=True
    )
    made.fit(Net(), loader(), loader(seed=1))
    assert chosen(guard) == []


@pytest.mark.parametrize(
    ("lie", "remedy", "fixed"),
    [
        (
            lambda: ModelCheckpoint(monitor="val_acc"),
            'ModelCheckpoint(monitor="val_acc", mode="max")',
            lambda: ModelCheckpoint(monitor="val_acc", mode="max"),
        ),
        (
            lambda: EarlyStopping("val_loss", mode="max"),
            'EarlyStopping(monitor="val_loss", mode="min")',
            lambda: EarlyStopping(monitor="val_loss", mode="min"),
        ),
        (
            lambda: ModelCheckpoint(
                monitor="val_loss", every_n_train_steps=4, save_top_k=-1
            ),
            "Leave `every_n_train_steps` and `train_time_interval` out of ModelCheckpoint",
            lambda: ModelCheckpoint(monitor="val_loss", save_top_k=-1),
        ),
        (
            lambda: ModelCheckpoint(
                monitor="val_loss", every_n_epochs=3, save_on_train_epoch_end=True
            ),
            "ModelCheckpoint(save_on_train_epoch_end=False)",
            lambda: ModelCheckpoint(
                monitor="val_loss", every_n_epochs=2, save_on_train_epoch_end=False
            ),
        ),
        (
            lambda: EarlyStopping(
                "val_loss", strict=False, check_on_train_epoch_end=True
            ),
            "EarlyStopping(check_on_train_epoch_end=False)",
            lambda: EarlyStopping("val_loss", check_on_train_epoch_end=False),
        ),
    ],
)
def test_a_remedy_makes_the_run_silent(
    fitted: Any, lie: Any, remedy: str, fixed: Any
) -> None:
    settings = {
        "max_epochs": 4,
        "check_val_every_n_epoch": 2,
        "num_sanity_val_steps": 0,
    }
    guard, _ = fitted(lie(), **settings)
    (finding,) = chosen(guard)
    assert remedy in finding.remedy
    guard, _ = fitted(fixed(), **settings)
    assert chosen(guard) == []


def test_the_guarded_run_saves_the_same_files(trainer: Make, tmp_path: Path) -> None:
    saved = []
    for name, guards in (("bare", []), ("guarded", [quiet()])):
        torch.manual_seed(0)
        checkpoint = ModelCheckpoint(tmp_path / name, monitor="val_loss", save_top_k=2)
        made = trainer(
            callbacks=[checkpoint, *guards], enable_checkpointing=True, max_epochs=3
        )
        made.fit(Net(), loader(), loader(seed=1))
        saved.append(
            {Path(p).name: float(v) for p, v in checkpoint.best_k_models.items()}
        )
        assert "save_checkpoint" not in vars(made)
    assert saved[0] == saved[1]


class Recomputed(pl.LightningModule):
    """Trains on a loss in a checkpoint, with a batch norm that counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.runs = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        def part(x: Any, y: Any) -> Any:
            self.runs += 1
            return F.cross_entropy(self.net(x), y) * torch.tensor(0.5)

        return checkpoint(part, batch[0], batch[1], use_reentrant=False)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("objective", loss, batch_size=len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_checkpointed_part_of_the_loss_is_not_computed_again(
    trainer: Make, tmp_path: Path
) -> None:
    made = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 4, generator=made), torch.arange(64) % 2
    ends = []
    for guards in ([], [EvalGuard()]):
        pl.seed_everything(0, verbose=False)
        net = Recomputed()
        best = ModelCheckpoint(tmp_path, monitor="objective", mode="max")
        sets = TensorDataset(x[:48], y[:48]), TensorDataset(x[48:], y[48:])
        train, val = (DataLoader(one, 8) for one in sets)
        run = trainer(
            callbacks=[best, *guards], max_epochs=2, enable_checkpointing=True
        )
        run.fit(net, train, val)
        ends.append((net.runs, *net.state_dict().values()))
    bare, guarded = ends
    assert guarded[0] == bare[0] == 24
    assert all(map(torch.equal, bare[1:], guarded[1:]))
