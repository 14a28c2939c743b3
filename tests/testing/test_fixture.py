"""The pytest fixture, in a pytest session of its own."""

from __future__ import annotations

import textwrap

import pytest

pytest_plugins = ["pytester"]

_HEAD = """
import pytest, torch, warnings
from lightning.pytorch import LightningModule, Trainer
from lightning_evalguard import EvalGuardError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.filterwarnings("ignore")

class Net(LightningModule):
    bug = ""
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    def validation_step(self, batch, batch_idx):
        if self.bug == "awake":
            self.net[1].train()
        noise = torch.rand_like(batch[0]) * 1e-9 if self.bug == "draws" else 0
        return {"logits": self.net(batch[0] + noise), "target": batch[1]}

def validate(guard, bug=""):
    net = Net()
    net.bug = bug
    data = DataLoader(TensorDataset(torch.arange(32.0).view(8, 4), torch.arange(8) % 3), 4)
    Trainer(accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, callbacks=[guard]).validate(net, data, verbose=False)
"""


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini(
        "[pytest]\naddopts = --strict-markers -p no:cacheprovider -p no:xdist\n"
    )
    return pytester


def run(pytester: pytest.Pytester, tests: str) -> pytest.RunResult:
    pytester.makepyfile(_HEAD + textwrap.dedent(tests))
    return pytester.runpytest_inprocess("-q")


def test_a_clean_module_passes_and_writes_nothing(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        """
        def test_trainer(evalguard):
            validate(evalguard)
            assert evalguard.report.checked["evaluations"] == 1

        def test_plain_loop(evalguard):
            model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
            with evalguard.evaluating(model) as report:
                model(torch.ones(2, 4))
            assert report.checked["evaluations"] == 1
        """,
    )
    result.assert_outcomes(passed=2)
    assert [p.name for p in inner.path.iterdir() if "evalguard" in p.name] == []


def test_a_breach_raises_where_it_is(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        """
        def test_fails(evalguard):
            validate(evalguard, "awake")

        def test_expects_it(evalguard):
            with pytest.raises(EvalGuardError, match="is in train mode"):
                validate(evalguard, "awake")
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*EvalGuardError: *", "*Dropout*is in train mode*"])


def test_what_is_only_warned_of_fails_the_test_itself(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        """
        def test_fails(evalguard):
            validate(evalguard, "draws")

        def test_plain_loop(evalguard):
            class Draws(nn.Module):
                def forward(self, x):
                    return x + torch.rand_like(x)
            with evalguard.evaluating(Draws()):
                Draws()(torch.ones(2))
            model = Draws()
            with evalguard.evaluating(model):
                model(torch.ones(2, 2))

        @pytest.mark.xfail(strict=True, reason="it draws, and the fixture fails it")
        def test_expected(evalguard):
            validate(evalguard, "draws")
        """,
    )
    result.assert_outcomes(failed=2, xfailed=1)
    result.stdout.fnmatch_lines(["*rand_like*drew random numbers*stochastic*"])


def test_the_marker_passes_keywords_on(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        """
        @pytest.mark.evalguard(stochastic="ignore", batch="ignore")
        def test_allowed(evalguard):
            validate(evalguard, "draws")

        @pytest.mark.evalguard(modes="loud")
        def test_refused(evalguard):
            pass
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*modes='loud'*"])


def test_a_fixture_of_the_same_name_is_left_alone(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        """
        @pytest.fixture
        def evalguard():
            return 3

        def test_own(evalguard):
            assert evalguard == 3
        """,
    )
    result.assert_outcomes(passed=1)
