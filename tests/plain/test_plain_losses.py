"""Losses written around the model's call in one line, and what scripts do with them."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import watch
from lightning_evalguard.checks.sync.overrides import SUPPORTED

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
INLINE: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "cross entropy": lambda net, x, y: F.cross_entropy(net(x), y),
    "nll": lambda net, x, y: F.nll_loss(F.log_softmax(net(x), 1), y),
    "bce": lambda net, x, y: F.binary_cross_entropy_with_logits(
        net(x)[:, 1], y.float()
    ),
    "margin": lambda net, x, y: F.multi_margin_loss(net(x), y),
    "soft margin": lambda net, x, y: F.soft_margin_loss(net(x)[:, 1], 2.0 * y - 1),
    "mse": lambda net, x, y: F.mse_loss(net(x)[:, 1], y.float()),
    "l1": lambda net, x, y: F.l1_loss(net(x)[:, 1], y.float()),
    "huber": lambda net, x, y: F.huber_loss(net(x)[:, 1], y.float()),
    "gaussian": lambda net, x, y: F.gaussian_nll_loss(
        net(x)[:, 1], y.float(), torch.ones(len(x))
    ),
    "labels": lambda net, x, y: F.multilabel_soft_margin_loss(
        net(x), F.one_hot(y, 2).float()
    ),
    "divergence": lambda net, x, y: F.kl_div(
        net(x).log_softmax(1), F.one_hot(y, 2).float()
    ),
    "poisson": lambda net, x, y: F.poisson_nll_loss(net(x)[:, 1], y.float()),
}


def fit(
    score: Callable[[nn.Module, Tensor, Tensor], Tensor], switches: bool
) -> list[float]:
    """Train two epochs, and score the last twenty at once after each."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scores = []
    for _ in range(2):
        net.train()
        for start in range(0, 40, 10):
            optimizer.zero_grad()
            score(net, X[start : start + 10], Y[start : start + 10]).backward()
            optimizer.step()
        if switches:
            net.eval()
        with torch.no_grad():
            scores.append(score(net, X[40:], Y[40:]))
    return [float(value) for value in scores]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", INLINE)
def test_a_whole_set_scored_in_one_line_is_an_evaluation(name: str) -> None:
    score = INLINE[name]
    bare = fit(score, switches=False)
    with watch(sync="ignore") as report:
        assert fit(score, switches=False) == bare
    assert [finding.check for finding in report.findings] == ["modes"]
    with watch(sync="ignore") as report:
        fit(score, switches=True)
    assert report.findings == []
    assert report.checked["evaluations"] == 2


def test_a_loss_in_one_line_gives_the_matrix() -> None:
    with watch(sync="ignore") as report:
        fit(INLINE["cross entropy"], switches=True)
    (result,) = report.confusion.values()
    assert result.total == 20


def test_the_functions_keep_their_signature_and_their_name() -> None:
    before = {
        n: inspect.signature(vars(F)[n]) for n in ("gaussian_nll_loss", "cross_entropy")
    }
    with watch():
        for name, signature in before.items():
            function = vars(F)[name]
            assert inspect.signature(function) == signature
            assert pickle.loads(pickle.dumps(function)) is function
        torch.jit.script(F.multilabel_soft_margin_loss)


class Scored(nn.Module):
    """Computes its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(x), y)


def test_a_model_is_scripted_right_after_it_was_evaluated() -> None:
    net = Scored()
    with watch(sync="ignore") as report:
        net(X, Y).backward()
        torch.optim.SGD(net.parameters(), 0.1).step()
        net.eval()
        with torch.no_grad():
            first, second = net(X[:20], Y[:20]), net(X[20:], Y[20:])
        scripted = torch.jit.script(net)
        assert scripted(X[20:], Y[20:]).item() == second.item() != first.item()
    assert report.findings == []


@pytest.mark.skipif(not SUPPORTED, reason="torch < 2.9: no syncs are listened for")
def test_a_batch_is_copied_to_the_device_without_a_word_and_a_constant_is_not() -> None:
    device, net = torch.device("cpu"), nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    samples = [(x, int(y)) for x, y in TensorDataset(X, Y)]

    def train(weigh: bool) -> None:
        for x, y in DataLoader(samples, 10):  # type: ignore[arg-type]
            x, y = x.to(device), y.to(device)
            logits = net(x)
            weight = torch.tensor([1.0, 2.0]).to(device) if weigh else None
            F.cross_entropy(logits, y, weight).backward()
            optimizer.step()

    with watch() as report:
        train(weigh=False)
    assert report.findings == []
    with pytest.warns(UserWarning, match="host wait"), watch() as report:
        train(weigh=True)
    assert [finding.check for finding in report.findings] == ["sync"]
