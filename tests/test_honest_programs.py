"""Honest programs of the field under a default guard: none is stopped, and each remedy works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_evalguard import EvalGuard, EvalGuardError, EvalGuardWarning
from models import honest_edges, honest_field, honest_programs
from models.honest import PROGRAMS, VAL, Honest, Program, disturbances
from models.program import FEATURES, Classifier

Fit = Callable[..., pl.Trainer]
TABLES = (honest_edges, honest_field, honest_programs)


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_honest_program_is_left_alone(name: str, tmp_path: Path) -> None:
    assert disturbances(PROGRAMS[name], tmp_path) == []


def test_a_program_that_is_not_honest_is_disturbed(tmp_path: Path) -> None:
    class Random(Honest):
        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            self.log("val_loss", self(batch[0] + torch.randn_like(batch[0])).mean())

    (said,) = disturbances(lambda _: Program(Random()), tmp_path)
    assert "randn_like" in said


class Normalised(Classifier):
    """Scores by a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x))

    def estimate(self) -> None:
        self.norm.train()
        with torch.no_grad():
            self.norm(torch.ones(8, FEATURES) * torch.arange(8)[:, None])
        self.norm.eval()


class Calibrates(Normalised):
    """Statistics are estimated anew for the weights that are evaluated, as schedule-free does."""

    def on_validation_epoch_start(self) -> None:
        self.estimate()


class PutsBack(Calibrates):
    """The same, and training goes on with its own."""

    def on_validation_epoch_start(self) -> None:
        self.own = {n: b.clone() for n, b in self.norm.named_buffers()}
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        for name, buffer in self.norm.named_buffers():
            buffer.copy_(self.own[name])


class Drifts(Normalised):
    """A step wakes the norm: its statistics take in the validation set."""

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.estimate()
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_calibration_before_the_first_batch_is_a_suspicion_that_works_when_put_back(
    sanity: int, fit: Fit
) -> None:
    guard = EvalGuard(sync="ignore")
    with pytest.warns(EvalGuardWarning, match="estimated anew before the first batch"):
        fit(Calibrates(), guard, num_sanity_val_steps=sanity)
    assert {f.check for f in guard.report.findings} == {"state"}
    assert not any(f.certain for f in guard.report.findings)
    remedies = {f.remedy for f in guard.report.findings}
    assert remedies == {"Put it back before the evaluation ends, or do it in training."}

    put_back = EvalGuard(sync="ignore")
    fit(PutsBack(), put_back, num_sanity_val_steps=sanity)
    assert put_back.report.findings == []


def test_statistics_that_a_step_moves_stop_the_run(fit: Fit) -> None:
    with pytest.raises(EvalGuardError, match="running_mean"):
        fit(Drifts(), EvalGuard(modes="ignore", sync="ignore"), num_sanity_val_steps=0)


class Variational(Classifier):
    """Classifies a latent that it draws, in evaluation too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mu, logvar = x, x * 0.1
        return super().forward(self.latent(mu, logvar))

    def latent(self, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


class ByDistribution(Variational):
    def latent(self, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(mu, torch.exp(0.5 * logvar)).rsample()


class MeanInEvaluation(Variational):
    def latent(self, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        return super().latent(mu, logvar) if self.training else mu


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        (
            Variational,
            "Take the mean in evaluation: `z = mu + std * eps if self.training else mu`.",
        ),
        (
            ByDistribution,
            "Take the mean in evaluation: `z = q.rsample() if self.training else q.mean`.",
        ),
    ],
)
def test_a_draw_around_a_mean_is_told_to_take_the_mean(
    module: type[Variational], remedy: str, fit: Fit
) -> None:
    guard = EvalGuard(sync="ignore")
    with pytest.warns(EvalGuardWarning, match="drew random numbers in eval mode"):
        fit(module(), guard)
    assert {f.remedy for f in guard.report.findings} == {remedy}
    assert not any(f.certain for f in guard.report.findings)
    followed = EvalGuard(sync="ignore")
    fit(MeanInEvaluation(), followed)
    assert followed.report.findings == []


class Uncertain(Honest):
    """Monte Carlo dropout: wakes its dropouts alone in prediction."""

    def __init__(self) -> None:
        drops = (nn.Dropout(0.2), nn.Linear(8, 8), nn.Sequential(nn.Dropout(0.2)))
        super().__init__(nn.Sequential(nn.Linear(8, 8), *drops))

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        for part in self.modules():
            if isinstance(part, nn.Dropout):
                part.train()
        return torch.stack([self(batch[0]) for _ in range(3)]).var(0)


class PutsToSleep(Uncertain):
    """The same, put back in the step."""

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        draws = super().predict_step(batch, batch_idx)
        self.eval()
        return draws


@pytest.mark.parametrize("module", [Uncertain, PutsToSleep])
def test_monte_carlo_dropout_is_one_switch_away_which_is_printed(
    module: type[Uncertain], trainer: Callable[..., pl.Trainer]
) -> None:
    loader = torch.utils.data.DataLoader(VAL, 4)
    with pytest.raises(EvalGuardError) as stopped:
        trainer(callbacks=[EvalGuard(sync="ignore")]).predict(module(), loader)
    (finding,) = stopped.value.report.findings
    assert "as is `body.3.0`" in finding.fact
    assert "EvalGuard(allow=" in str(finding)
    guard = eval(finding.switch, {"EvalGuard": EvalGuard})
    trainer(callbacks=[guard]).predict(module(), loader)
    assert guard.report.findings == []
