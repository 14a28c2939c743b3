"""The pytest fixture `evalguard`: a test of one's own module fails on anything that is found.

    def test_my_module(evalguard):
        Trainer(callbacks=[evalguard], fast_dev_run=True).fit(MyModule())

    @pytest.mark.evalguard(sync="ignore")
    def test_my_model(evalguard):
        with evalguard.evaluating(MyModel()) as report:
            ...

pytest loads this file in every session of everybody who has the package installed, so that it
imports pytest alone.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "evalguard(**keywords): what the `evalguard` fixture passes to `EvalGuard`, "
        'e.g. sync="ignore" or allow={"stochastic": ["vae.*"]}',
    )


@pytest.fixture
def evalguard(request: pytest.FixtureRequest) -> Any:
    """An `EvalGuard` for the test's Trainer; the test fails with whatever it found.

    What a bare guard stops at raises on the spot, as ``EvalGuardError``. What it only warns of
    (suspicions, syncs, data) fails the test when its function has returned.
    ``evalguard.evaluating(model)`` is the same for a plain loop. Keywords of the marker
    ``evalguard`` are passed on.
    """
    from lightning_evalguard.testing.fixture import FixtureGuard

    marker = request.node.get_closest_marker("evalguard")
    return FixtureGuard(**(marker.kwargs if marker else {}))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Fail the test, and not its teardown, with what was found and not raised."""
    outcome = yield
    guard = pyfuncitem.funcargs.get("evalguard")
    if said := getattr(guard, "unraised", str)():
        pytest.fail(said, pytrace=False)
    return outcome
