"""The guard without Lightning: plain loops, policies, what is allowed, and its own failures."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from lightning_evalguard import (
    EvalGuardError,
    EvalGuardWarning,
    Finding,
    Report,
    allow,
    evaluating,
)
from lightning_evalguard.allow import allowed
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.guard import Guard


def model() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net[1].eval()
    return net


def modes(net: nn.Module) -> list[bool]:
    return [m.training for m in net.modules()]


X = torch.ones(3, 4)


def test_a_plain_loop_evaluates_in_eval_mode_without_a_graph() -> None:
    net = model()
    with evaluating(net) as report:
        assert not any(modes(net))
        assert not net(X).requires_grad
        assert torch.equal(net(X), net(X))
    assert modes(net) == [True, True, False, True]
    assert torch.is_grad_enabled()
    assert report.findings == []
    assert str(report) == "checked: 1 evaluation, 3 batches, 4 modules"


def test_a_module_woken_in_a_plain_loop_is_found() -> None:
    net = model()
    block = evaluating(net)
    with (
        pytest.raises(EvalGuardError, match=r"`2` \(Dropout\): is in train mode"),
        block,
    ):
        net[2].train()
    assert modes(net) == [True, True, False, True]


def test_a_module_woken_for_one_call_of_a_plain_loop_is_found() -> None:
    net = model()
    block = evaluating(net, modes="warn", state="ignore", stochastic="ignore")
    with (
        pytest.warns(EvalGuardWarning, match=r"is in train mode.*`net.train\(\)`"),
        block,
    ):
        net.train()
        net(X)
        net.eval()
    assert modes(net) == [True, True, False, True]


class Noisy(nn.Module):
    """Dropout that no mode reaches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5)


class Counts(nn.Module):
    """Counts its calls in a buffer, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


class Records(nn.Module):
    """Switches grad mode on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return self.net(x)


class Centres(nn.Module):
    """Standardises over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("make", "check"),
    [(Noisy, "stochastic"), (Counts, "state"), (Records, "grad")],
)
def test_every_check_looks_at_the_calls_of_a_plain_loop(
    make: type[nn.Module], check: str
) -> None:
    net = make()
    block = evaluating(net, audit="full")
    with pytest.raises(EvalGuardError) as raised, block:
        net(torch.randn(6, 4))
        pytest.fail("not found at the first call")
    assert check in {f.check for f in raised.value.report.findings}


def test_a_dependence_on_the_batch_is_a_suspicion_in_a_plain_loop() -> None:
    net = Centres()
    with (
        pytest.warns(EvalGuardWarning, match=r"x - x.mean\(0\)`.*\[batch\]"),
        evaluating(net, audit="full"),
    ):
        net(torch.randn(6, 4))


def test_an_optimizer_step_in_a_plain_evaluation_is_found() -> None:
    net = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(X).sum().backward()
    block = evaluating(net, optimizers=[optimizer])
    with pytest.raises(EvalGuardError, match="weight"), block:
        optimizer.step()


def test_a_copy_made_in_a_plain_loop_is_a_copy() -> None:
    net = model()
    with evaluating(net) as report:
        net(X)
        twin = copy.deepcopy(net)
        saved = pickle.loads(pickle.dumps(net))
        for parameter in twin.parameters():
            parameter.data.zero_()
        assert twin(X).abs().sum() == 0
        assert torch.equal(saved(X), net(X))
    assert report.checked["batches"] == 2
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


def test_a_call_that_fails_in_a_plain_loop_fails_alone() -> None:
    net = model()
    with pytest.raises(RuntimeError, match="shape"), evaluating(net):
        net(torch.ones(3, 5))
    assert modes(net) == [True, True, False, True]
    assert not net._forward_hooks


def test_a_module_whose_path_hooks_would_change_is_not_hooked() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, batch_first=True)
    alone = copy.deepcopy(layer).eval()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        expected = alone(x)
    with evaluating(layer) as report:
        assert torch.equal(layer(x), expected)
    assert "not watched one by one" in report.notes[0]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_a_plain_loop_comes_out_unhidden(
    error: type[BaseException],
) -> None:
    net = model()
    with pytest.raises(error), pytest.warns(EvalGuardWarning), evaluating(net):
        net[2].train()
        raise error
    assert modes(net) == [True, True, False, True]


def test_plain_loops_nest() -> None:
    net = model()
    with evaluating(net), evaluating(net[2]):
        pass
    assert modes(net) == [True, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"model": 3}, "model=int"),
        ({"modes": "loud"}, "modes='loud'"),
        ({"allow": {"mode": []}}, "'mode'"),
        ({"allow": {"modes": "dropout"}}, "expected a list"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        evaluating(**({"model": nn.Linear(1, 1)} | arguments))


# policies, on a check that finds what it is told


class Finds(Check):
    """Finds given findings after each step, or fails in a given way."""

    name = "modes"

    def __init__(self, *findings: Finding, fails: Exception | None = None) -> None:
        self.findings, self.fails, self.fixed = findings, fails, 0

    def after_step(self, now: Moment, outputs: Any) -> Iterable[Finding]:
        if self.fails is not None:
            raise self.fails
        return self.findings

    def fix(self, findings: Sequence[Finding]) -> Iterable[Finding]:
        self.fixed += 1
        return ()


def finding(**more: Any) -> Finding:
    return Finding(
        **(
            {"check": "modes", "stage": "test", "fact": "is odd", "remedy": "Mend."}
            | more
        )
    )


def step(guard: Guard, times: int = 1) -> Any:
    for _ in range(times):
        out = guard.step(Moment("test"), lambda x: x + 1, 1)
    return out


def test_error_stops_for_what_is_certain_and_warns_for_a_suspicion() -> None:
    sure, doubt = finding(), finding(fact="may be odd", certain=False)
    guard = Guard([(Finds(sure, doubt), "error")], None, Report())
    with (
        pytest.warns(EvalGuardWarning, match="may be odd"),
        pytest.raises(EvalGuardError) as got,
    ):
        step(guard)
    assert "may be odd" not in str(got.value)
    assert len(got.value.report.findings) == 2
    silent = Guard([(Finds(doubt), "error")], None, Report())
    with pytest.warns(EvalGuardWarning):
        assert step(silent) == 2


@pytest.mark.filterwarnings("error::lightning_evalguard.EvalGuardWarning")
def test_what_stops_the_run_is_raised_where_a_filter_makes_errors_of_warnings() -> None:
    doubt, lesser = finding(fact="may be odd", certain=False), finding(fact="is even")
    checks = [
        (Finds(doubt), "error"),
        (Finds(lesser), "warn"),
        (Finds(finding()), "error"),
    ]
    report = Report()
    with pytest.raises(EvalGuardError, match="is odd") as got:
        step(Guard(checks, None, report))
    assert len(got.value.report.findings) == 3
    with pytest.raises(EvalGuardWarning, match="may be odd"):
        step(Guard(checks[:2], None, Report()))


def test_all_findings_of_one_moment_come_in_one_exception() -> None:
    checks = [(Finds(finding(subject=s)), "error") for s in "ab"]
    with pytest.raises(EvalGuardError, match="2 findings"):
        step(Guard(checks, None, Report()))


def test_warn_says_it_once_and_counts_on() -> None:
    guard = Guard([(Finds(finding()), "warn")], None, Report())
    with pytest.warns(EvalGuardWarning) as told:
        step(guard, 5)
    assert len(told) == 1
    assert guard.report.findings[0].count == 5


def test_fix_asks_the_check_to_repair() -> None:
    check = Finds(finding())
    with pytest.warns(EvalGuardWarning, match="Repaired for this run"):
        step(Guard([(check, "fix")], None, Report()), 3)
    assert check.fixed == 3


@pytest.mark.parametrize(
    "pattern",
    ["enc.*", "enc.drop", "*/metrics.py", "sample"],
    ids=["glob", "name", "file", "def"],
)
def test_what_is_allowed_by_pattern_is_no_finding(pattern: str) -> None:
    found = finding(subject="enc.drop", location="src/metrics.py:3", function="sample")
    guard = Guard([(Finds(found), "error")], {"modes": [pattern]}, Report())
    step(guard)
    assert guard.report.findings == []
    with pytest.raises(EvalGuardError):
        step(Guard([(Finds(found), "error")], {"sync": [pattern]}, Report()))


def test_a_check_that_fails_costs_one_warning_and_is_off() -> None:
    other = Finds(finding(fact="is still found"))
    checks = [(Finds(fails=ZeroDivisionError("no")), "error"), (other, "warn")]
    guard = Guard(checks, None, Report())
    with pytest.warns(EvalGuardWarning) as told:
        assert step(guard, 3) == 2
    assert ["failed inside" in str(w.message) for w in told] == [True, False]
    assert "ZeroDivisionError: no" in guard.report.notes[0]


def test_allow_holds_for_its_block_its_thread_and_its_check() -> None:
    seen = []
    with allow("sync", reason="reads the learning rate"):
        assert allowed("sync")
        assert not allowed("modes")
        thread = threading.Thread(target=lambda: seen.append(allowed("sync")))
        thread.start()
        thread.join()
        with allow("sync"):
            pass
        assert allowed("sync")
    assert not allowed("sync")
    assert seen == [False]

    @allow("modes", reason="Monte Carlo dropout")
    def inside() -> bool:
        return allowed("modes")

    assert inside()
    assert not allowed("modes")
    with pytest.raises(ValueError, match="check='loud'"):
        allow("loud")


def test_allow_first_only_holds_the_first_time_a_line_is_reached() -> None:
    def look() -> bool:
        with allow("sync", reason="a look at the first batch", first_only=True):
            return allowed("sync")

    @allow("sync", first_only=True)
    def decorated() -> bool:
        return allowed("sync")

    assert [look() for _ in range(3)] == [True, False, False]
    assert [decorated() for _ in range(3)] == [True, False, False]
    assert not allowed("sync")
