"""The checks around a plain PyTorch loop, without Lightning."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import nn

from lightning_evalguard.audit import Mode, Replays, why_not_again
from lightning_evalguard.checks.batch.check import BatchCheck
from lightning_evalguard.checks.check import Check, Moment
from lightning_evalguard.checks.grad import GradCheck
from lightning_evalguard.checks.modes.check import ModesCheck
from lightning_evalguard.checks.rng import RngCheck
from lightning_evalguard.checks.state.check import StateCheck
from lightning_evalguard.checks.stochastic.check import StochasticCheck
from lightning_evalguard.guard import Guard
from lightning_evalguard.hints import names_keywords
from lightning_evalguard.instruments.tracebacks import trim
from lightning_evalguard.keywords import check_keywords
from lightning_evalguard.model.tree import compiled, inside
from lightning_evalguard.policies import (
    Allow,
)
from lightning_evalguard.ranks import Alone, ranks_of
from lightning_evalguard.report import (
    EvalGuardError,
    FixPolicy,
    Policy,
    Report,
    hidden,
)

__tracebackhide__ = hidden


class evaluating:  # noqa: N801 - reads as a statement in user code
    """Evaluate `model` in a plain PyTorch loop, under the same checks as the Trainer's callback.

    Every submodule is put in eval mode, gradients are off, and on any exit (also an exception or
    Ctrl-C) each submodule has exactly the mode it had before. Flags are set directly: `train()`
    and `eval()` of the model are not called. A step is one call of `model`: around each the
    tripwires look, and the first is watched as it runs. What the block does outside those calls is
    seen by what it leaves at the end.

    Around a module that Fabric or accelerate has set up, findings name the modules as they stand
    in your own. With pytorch-ignite it stands around the evaluator:
    ``with evaluating(model): evaluator.run(loader)``.

    Args:
        model: The model, with any submodules.
        modes: Policy of the `modes` check: ``"error"``, ``"warn"``, ``"fix"`` or ``"ignore"``.
        grad: Policy for autograd left on, and graphs kept.
        state: Policy for weights, buffers, settings or the batch changed.
        stochastic: Policy for random numbers drawn.
        batch: Policy for outputs that depend on the other samples of the batch.
        rng: Policy for shared generators that the block moves; ``"fix"`` puts them back.
        allow: Per check, glob patterns of qualified names, source files or functions whose
            findings are meant, e.g. ``{"modes": ["mc_dropout*"]}``.
        audit: ``"auto"`` watches the first call as it runs, ``"full"`` runs it again with every
            effect undone, ``"off"`` does neither.
        optimizers: Those that train the model, to find a step or a setting changed in the block.
        accelerator: The `accelerate.Accelerator` whose loaders the block reads: then what it scores
            is counted, each sample of all ranks once, and ``report.confusion["evaluate"]`` is the
            same matrix on every rank. What is found on one rank is raised on all.

    Raises:
        EvalGuardError: At the first call that violates the contract, or at the end of the block.
        ValueError: On an unknown policy or check.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
        >>> with evaluating(model) as report:
        ...     first, second = model(torch.ones(1, 4)), model(torch.ones(1, 4))
        >>> torch.equal(first, second), model.training
        (True, True)
        >>> print(report)
        checked: 1 evaluation, 2 batches, 3 modules
    """

    @names_keywords
    def __init__(
        self,
        model: nn.Module,
        *,
        modes: FixPolicy = "error",
        grad: Policy = "error",
        state: Policy = "error",
        stochastic: Policy = "error",
        batch: Policy = "error",
        rng: FixPolicy = "ignore",
        allow: Allow | None = None,
        audit: Mode = "auto",
        optimizers: Iterable[torch.optim.Optimizer] = (),
        accelerator: Any = None,
    ) -> None:
        _check_kinds_of(model, accelerator)
        policies = check_keywords(locals())
        trained = _checked_optimizers(optimizers)
        checks: list[Check] = [
            ModesCheck(),
            GradCheck(),
            StateCheck(lambda: trained),
            StochasticCheck(),
            BatchCheck(),
            RngCheck(restore=rng == "fix"),
        ]
        self._outer, self._model = model, _called(model)
        self._report = Report()
        self._ranks = Alone(self._report)
        now = Moment("evaluate")
        if accelerator is not None:
            now.rank = accelerator.process_index
            self._ranks = ranks_of(self._report, now.rank, accelerator.num_processes)
        self._counted = _counted(self._report, self._ranks, accelerator)
        self._guard = Guard(
            [(c, policies[c.name]) for c in checks if policies[c.name] != "ignore"],
            allow,
            self._report,
            Replays(audit, beside=lambda: trained, why_not=why_not_again),
            self._ranks,
            host="evaluating",
        )
        self._now = now

    def __enter__(self) -> Report:
        self._before = [(m, m.training) for m in self._outer.modules()]
        self._report.checked["modules"] = len(self._before)
        self._guard.open(self._model, self._now)
        try:
            self._guard.start(self._now)
        except BaseException as error:  # no block, so no end of it
            self._guard.close(self._now, error)
            raise
        for module, flag in self._before:
            if flag:
                module.training = False
        self._no_grad = torch.no_grad()
        self._no_grad.__enter__()
        self._ranks.expect("audit", "matrix", "end", "close")
        if self._counted is not None:
            self._counted.open(sys._getframe(1))
        self._calls = _Calls(self._guard, self._model, self._now, self._counted)
        _open.extend(self._both())
        return self._report

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._calls.remove()
        for module in self._both():
            _open.remove(module)
        with ExitStack() as at_end:
            if error is None:
                at_end.callback(self._meet)
            else:
                self._ranks.leave()
            at_end.callback(trim, error, trace)
            at_end.callback(self._guard.close, self._now, error)
            at_end.callback(self._guard.stop, self._now, error)
            at_end.callback(self._restore)
            if self._counted is not None:
                at_end.callback(self._counted.close, error is not None)
            # which says what is in train mode
            if not isinstance(error, EvalGuardError):
                self._guard.flags(self._now, error)

    def _meet(self) -> None:
        """All ranks have the same verdict."""
        self._ranks.meet("end")
        self._ranks.meet("close")

    def _both(self) -> list[nn.Module]:
        """The model as it was given, and what is called inside where it is a wrapper."""
        return list(dict.fromkeys((self._outer, self._model)))

    def _restore(self) -> None:
        self._no_grad.__exit__(None, None, None)
        for module, flag in self._before:
            if module.training != flag:
                module.training = flag


def _check_kinds_of(model: Any, accelerator: Any) -> None:
    """Refuse what is no module, and what cannot gather.

    Raises:
        ValueError: Naming the argument and what it takes.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={type(model).__name__}: expected a torch.nn.Module")
    gathers = hasattr(type(accelerator), "gather_for_metrics")
    if accelerator is not None and not gathers:
        raise ValueError(
            f"accelerator={type(accelerator).__name__}: expected an accelerate.Accelerator"
        )


def _checked_optimizers(given: Any) -> list[torch.optim.Optimizer]:
    """Those that train the model.

    Raises:
        ValueError: Where it is no list of optimizers.
    """
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
        raise ValueError(f"optimizers={given!r}: expected a list of optimizers")
    trained = list(given)
    for optimizer in trained:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                f"optimizers: expected optimizers, got {type(optimizer).__name__}"
            )
    return trained


def _called(model: nn.Module) -> nn.Module:
    """What is called inside of wrappers; a compiled module stays whole, for its code is its own."""
    while not compiled(model):
        prefix, _ = inside(model)
        inner = model._modules.get(prefix.partition(".")[0])
        if inner is None:
            break
        model = inner
    return model


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _counted(report: Report, ranks: Alone, accelerator: Any) -> Any:
    """What counts the block; None where its needs are not installed."""
    if accelerator is None and not _is_installed("torchmetrics"):
        return None
    try:
        from lightning_evalguard.plain.counted import BlockCounts
    except ImportError as error:
        report.note(f"no confusion matrix: {error}")
        return None
    return BlockCounts(report, ranks, accelerator)


_open: list[nn.Module] = []


def is_evaluated(module: nn.Module) -> bool:
    """Whether a block evaluates `module` now, under checks of its own."""
    return any(model is module for model in _open)


class _Calls:
    """Guards each call of one module, through hooks on that module alone.

    A module whose code takes another path where hooks are, or takes none, is left alone.
    """

    def __init__(
        self, guard: Guard, model: nn.Module, now: Moment, counted: Any = None
    ) -> None:
        self._guard = guard
        self._model = model
        self._now = now
        self._counted = counted
        self._inside: ExitStack | None = None
        self._handles: list[Any] = []
        alone = (
            nn.TransformerEncoder,
            nn.TransformerEncoderLayer,
            torch.jit.ScriptModule,
        )
        if isinstance(model, alone):
            guard.report.note(
                f"calls of a {type(model).__name__} were not watched one by one: hooks on it would "
                "change what it computes"
            )
            return
        self._handles = [
            model.register_forward_pre_hook(_Hook(self._begin), with_kwargs=True),
            model.register_forward_hook(
                _Hook(self._end), with_kwargs=True, always_call=True
            ),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if module is not self._model or self._inside is not None:
            return
        self._now.batch += 1
        if self._counted is not None:
            self._counted.begin(module, args, kwargs)
        self._guard.before(self._now, args)
        with ExitStack() as stack:
            self._showing = stack.enter_context(self._guard.shown(self._now))
            self._inside = stack.pop_all()

    def _end(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: Any,
    ) -> None:
        if module is not self._model or self._inside is None:
            return
        inside, self._inside = self._inside, None
        inside.close()
        if self._counted is not None:
            self._counted.end()
        if outputs is None and sys.exc_info()[1] is not None:
            return  # the call failed; its own exception is on its way
        # run again as `forward`, which calls no hook: that is not a step of its own
        self._guard.after(
            self._now, outputs, self._showing, module.forward, args, kwargs
        )
        if self._now.batch == 0:
            self._guard.ranks.meet("audit")


class _Hook:
    """A hook that stays behind when its module is copied or saved inside the block."""

    def __init__(self, act: Callable[..., None]) -> None:
        self._act = act

    def __call__(self, *args: Any) -> None:
        self._act(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _no_hook, ()


def _nothing(*args: Any) -> None:
    return None


def _no_hook() -> Callable[..., None]:
    return _nothing
