"""One bit a sample: right in any task, in one order whatever the batches, compared pairwise."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from scipy.stats import binomtest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard
from lightning_evalguard.__main__ import main
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.outcomes import right
from lightning_evalguard.record.outcomes import Outcomes, exact_mcnemar, paired

Make = Callable[..., pl.Trainer]


@given(first=st.integers(0, 3000), second=st.integers(0, 3000))
@settings(max_examples=50)
def test_the_test_is_mcnemars_exact_one(first: int, second: int) -> None:
    if first + second:
        expected = binomtest(first, first + second).pvalue
        assert exact_mcnemar(first, second) == pytest.approx(expected, rel=1e-6)
    assert exact_mcnemar(first, second) == exact_mcnemar(second, first)


# --- which samples are right ----------------------------------------------------------------------


def outcomes_of(state: ConfusionMatrix, *batches: tuple[Any, Any]) -> list[bool]:
    state.kept = []
    for preds, target in batches:
        state.update(preds, target)
    return right(state.layout, state.kept, state.result().preds_are).tolist()


@pytest.mark.parametrize("full", [True, False])
def test_of_classes(full: bool) -> None:
    made = torch.Generator().manual_seed(0)
    preds = torch.randint(-1, 5, (60,), generator=made)
    target = torch.randint(-1, 6, (60,), generator=made)
    target[::7] = -100
    state = ConfusionMatrix(4, full=full)
    counted = outcomes_of(state, (preds[:40], target[:40]), (preds[40:], target[40:]))
    assert counted == ((preds == target) & (target >= 0) & (target < 4)).tolist()


@pytest.mark.parametrize("preds_are", ["logits", "probs", "labels", "unknown"])
@pytest.mark.parametrize("by_batch", [True, False])
def test_of_yes_or_no(preds_are: str, by_batch: bool) -> None:
    made = torch.Generator().manual_seed(0)
    target = torch.randint(2, (50,), generator=made)
    logits = torch.randn(50, generator=made)
    logits[3] = float("nan")
    preds = {"logits": logits, "unknown": logits}.get(preds_are, logits.sigmoid())
    if preds_are == "labels":
        preds, by_batch = logits.gt(0).long(), False
    state = ConfusionMatrix(2, "binary", preds_are=preds_are, by_batch=by_batch)
    counted = outcomes_of(state, (preds[:20], target[:20]), (preds[20:], target[20:]))
    expected = (logits > 0) == target.bool()
    expected[3] = preds_are == "labels" and not target[3]
    assert counted == expected.tolist()


def test_of_several_labels() -> None:
    made = torch.Generator().manual_seed(0)
    target = torch.randint(2, (40, 3), generator=made)
    preds = (target * 0.4 + torch.rand(40, 3, generator=made) * 0.8).clamp(max=1)
    state = ConfusionMatrix(3, "multilabel", preds_are="probs")
    counted = outcomes_of(state, (preds[:16], target[:16]), (preds[16:], target[16:]))
    assert counted == ((preds > 0.5) == target.bool()).all(1).tolist()


def test_a_state_that_is_reset_keeps_nothing() -> None:
    state = ConfusionMatrix(3)
    state.kept = []
    state.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
    state.reset()
    assert state.kept == []
    assert right(state.layout, state.kept, "labels").tolist() == []


# --- by sample ------------------------------------------------------------------------------------


def kept(order: torch.Tensor, size: int, wrong: set[int]) -> Any:
    """The outcomes of an evaluation of 40 samples, of which some are wrong."""
    x, y = torch.arange(40).float().repeat(3, 1).T, torch.arange(40) % 4
    x[39], y[39] = x[38], y[38]  # one sample twice
    outcomes = Outcomes()
    for i in order.split(size):
        outcomes.see("test", (x[i], y[i]))
    return outcomes.of("test", torch.tensor([int(i) not in wrong for i in order]))


@settings(max_examples=30)
@given(seed=st.integers(0, 99), size=st.integers(1, 40), twin=st.booleans())
def test_order_and_batches_do_not_matter(seed: int, size: int, twin: bool) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    first = kept(torch.arange(40), 8, {3, 4, 38})
    second = kept(order, size, {3, 5, 6, 38 + twin})
    assert paired(first, second) == (40, 2, 1)
    assert paired(first, first) == (40, 0, 0)


def test_other_samples_are_not_compared() -> None:
    first = kept(torch.arange(40), 8, {1})
    outcomes = Outcomes()
    outcomes.see("test", (torch.rand(40, 3), torch.arange(40)))
    other = outcomes.of("test", torch.ones(40, dtype=torch.bool))
    assert paired(first, other) is None
    assert paired(first, None) is None


def test_predictions_that_are_not_one_a_sample_are_not_kept() -> None:
    outcomes = Outcomes()
    outcomes.see("val", (torch.rand(4, 3), torch.arange(4)))
    assert outcomes.of("val", torch.ones(16, dtype=torch.bool)) is None
    assert (
        outcomes.unknown["val"]
        == "there are 16 predictions of 4 samples, expected one each"
    )
    assert Outcomes().of("val", None) is None


# --- in records -----------------------------------------------------------------------------------


class Net(pl.LightningModule):
    """Right on the samples whose number is not in `wrong`."""

    def __init__(self, wrong: range, returns: bool = True) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.wrong, self.returns = wrong, returns

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        missed = torch.tensor([int(n) in self.wrong for n in x[:, 0]])
        return {"preds": (y + missed.long()) % 3, "target": y} if self.returns else None


def run(
    trainer: Make, folder: Path, net: Net, outcomes: bool = True, n: int = 120
) -> EvalGuard:
    x, y = torch.arange(n).float().view(-1, 1), torch.arange(n) % 3
    shuffled = torch.randperm(
        n, generator=torch.Generator().manual_seed(len(net.wrong))
    )
    data = TensorDataset(x[shuffled], y[shuffled])
    guard = EvalGuard(
        outcomes=outcomes, weights="ignore", sync="ignore", record=str(folder)
    )
    made = trainer(callbacks=[guard], logger=CSVLogger(folder))
    made.test(net, DataLoader(data, batch_size=8 + len(net.wrong) % 5), verbose=False)
    return guard


def shown(capsys: pytest.CaptureFixture[str], *folders: Path) -> str:
    assert main(["show", *map(str, folders)]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_a_record_keeps_one_bit_a_sample(trainer: Make, tmp_path: Path) -> None:
    run(trainer, tmp_path, Net(range(10)))
    (said,) = json.loads((tmp_path / "evalguard.json").read_text())["runs"]
    outcomes = said["outcomes"]["test"]
    bits = base64.b64decode(outcomes["right"])
    assert (outcomes["samples"], len(bits)) == (120, 15)
    assert sum(byte.bit_count() for byte in bits) == 110


def test_show_compares_two_runs_sample_by_sample(
    trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, wrong in (
        ("a", range(4, 24)),
        ("b", range(20, 30)),
        ("c", range(18, 36)),
    ):
        run(trainer, tmp_path / name, Net(wrong))
    capsys.readouterr()
    said = shown(capsys, tmp_path / "a", tmp_path / "b")
    assert said == (
        "test: accuracy 0.8333 and 0.9167 differ by more than chance: of 120 samples 6 are right "
        "in a alone and 16 in b alone (McNemar's exact test, p = 0.052)"
    ).replace("more than", "no more than")
    assert (
        "no more than chance: of 120 samples 12 are right in a alone and 14 in c alone"
        in shown(capsys, tmp_path / "a", tmp_path / "c")
    )


def test_show_compares_by_intervals_where_no_outcomes_are(
    trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, wrong in (("a", range(60)), ("b", range(10)), ("c", range(12))):
        run(trainer, tmp_path / name, Net(wrong), outcomes=name == "c")
    capsys.readouterr()
    assert "differ by more than chance: +0.4167, " in shown(
        capsys, tmp_path / "a", tmp_path / "b"
    )
    assert "differ by no more than chance: -0.0167, " in shown(
        capsys, tmp_path / "b", tmp_path / "c"
    )
    run(trainer, tmp_path / "d", Net(range(10)), n=60)
    capsys.readouterr()
    assert "do not compare" in shown(capsys, tmp_path / "a", tmp_path / "d")


def test_a_record_from_before_outcomes_is_shown(
    trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        run(trainer, tmp_path / name, Net(range(10)))
        path = tmp_path / name / "evalguard.json"
        record = json.loads(path.read_text())
        for one in record["runs"]:
            del one["outcomes"]
            del one["confusion"]["test"]["intervals"]
        path.write_text(json.dumps(record))
    capsys.readouterr()
    assert "differ by no more than chance" in shown(
        capsys, tmp_path / "a", tmp_path / "b"
    )


def test_without_predictions_nothing_is_kept(trainer: Make, tmp_path: Path) -> None:
    run(trainer, tmp_path, Net(range(10), returns=False))
    (said,) = json.loads((tmp_path / "evalguard.json").read_text())["runs"]
    assert said["outcomes"] == {}


def test_outcomes_are_not_kept_unless_asked_for(trainer: Make, tmp_path: Path) -> None:
    run(trainer, tmp_path, Net(range(10)), outcomes=False)
    (said,) = json.loads((tmp_path / "evalguard.json").read_text())["runs"]
    assert said["outcomes"] == {}
