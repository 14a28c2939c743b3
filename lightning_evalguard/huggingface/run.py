"""One training with its evaluations, or one evaluation on its own, of a Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.sync.check import SyncCheck
from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.guard import Guard
from lightning_evalguard.huggingface.desk import HuggingFaceDesk
from lightning_evalguard.huggingface.labels import (
    Named,
    class_names,
    label_refusal,
    pair_of,
)
from lightning_evalguard.huggingface.modes import RestoredModes
from lightning_evalguard.report import (
    EvalGuardError,
    EvalGuardWarning,
    Finding,
    broke,
    hidden,
    warn_text,
)

__tracebackhide__ = hidden


class HuggingFaceRun:
    """One training with its evaluations, or one evaluation on its own."""

    def __init__(
        self,
        desk: HuggingFaceDesk,
        guard: Guard,
        sync: SyncCheck,
        recorder: Recorder | None,
    ) -> None:
        self.desk = desk
        self.guard = guard
        self.sync = sync
        self.report = guard.report
        self.ranks = guard.ranks
        self.now = Moment("fit", rank=desk.trainer.args.process_index)
        self._recorder = recorder
        self._counting = False
        self._kinds: set[str] = set()
        self._shown: dict[str, Any] = {}
        self._notes: set[str] = set()

    def open(self, fitting: bool) -> None:
        self.desk.fits = fitting
        self._where("fit")
        if fitting:
            self.ranks.expect("train")
        root = self.desk.module()
        self.guard.open(root, self.now)
        count = sum(1 for _ in root.modules())
        self.report.checked["modules"] = max(self.report.checked["modules"], count)

    def close(self, error: BaseException | None) -> None:
        if self._recorder is not None:
            self._recorder.abort()
        self._where("fit")
        if error is not None:
            self.ranks.leave()
        try:
            self.guard.close(self.now, error)
            self.ranks.expect("close")
            self.ranks.meet("close")
        finally:
            try:
                self.sync.write(self.report)
            except Exception as fault:  # noqa: BLE001 - our own bug must not stop a training run
                broke(self.report, "the list of syncs", "", fault)

    def _where(self, stage: str) -> None:
        now = self.now
        state = self.desk.trainer.state
        now.stage, now.step, now.fitting = stage, int(state.global_step), self.desk.fits
        now.epoch = int(state.epoch) if state.epoch is not None else None

    def train_step(self, call: Callable[..., Any], inputs: Any) -> Any:
        self._where("fit")
        outputs = self.guard.train_step(self.now, call, inputs)
        self.ranks.trained()
        return outputs

    # an evaluation

    def evaluate(self, loop: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run one evaluation loop; it leaves the modes as the Trainer has them."""
        given = _arguments(loop, args, kwargs)
        prefix = str(given.get("metric_key_prefix", "eval"))
        predicts = given.get("description") == "Prediction" or prefix.startswith("test")
        outer = self.now
        self.now = Moment("validate", rank=self.now.rank)
        self._where("test" if predicts else "validate")
        self.desk.evaluates = given.get("dataloader")
        self.desk.logged_last = {}
        self.ranks.expect(*self._points())
        modes = RestoredModes(self.desk.roots())
        try:
            self.guard.start(self.now)
            self._count(prefix)
            try:
                output = loop(*args, **kwargs)
            except BaseException as error:
                self.ranks.leave()
                if self._recorder is not None:
                    self._recorder.abort()
                modes.restore()
                self.guard.stop(self.now, error)
                raise
            with modes.as_before():
                self._finish(prefix, output)
            return output
        except BaseException:
            modes.restore()
            raise
        finally:
            self.desk.evaluates = None
            self.now = outer

    def _finish(self, prefix: str, output: Any) -> None:
        self.guard.steps_over(self.now)
        metrics = (
            output.metrics if isinstance(getattr(output, "metrics", None), dict) else {}
        )
        self._read(prefix, metrics)
        self.desk.logged_last = metrics
        self.now.batch = -1
        self.guard.stop(self.now)
        everyone = self.ranks.meet("end", self.guard.say(self.now))
        if everyone is not None and self.ranks.world > 1:
            self.guard.hear(
                self.now, {rank: said for rank, said in everyone.items() if said}
            )
        self.guard.scored(self.now)
        if self.now.fitting:
            self.ranks.expect("train")

    def _points(self) -> list[str]:
        """Where the ranks meet in the evaluation that begins; equal on all of them."""
        points = ["audit"] if self.now.stage not in self._kinds else []
        self._kinds.add(self.now.stage)
        return [*points, *(["matrix"] if self._recorder is not None else []), "end"]

    def step(self, step: Callable[..., Any], inputs: Any) -> Any:
        """One prediction step, whose own code switches grad mode off.

        It is on where the step begins and after it, and no finding: the guard looks with it off,
        the step finds it as it was.
        """
        self.now.batch += 1
        results: list[Any] = []
        grad = left = torch.is_grad_enabled()

        def call(inputs: Any) -> dict[str, Any]:
            nonlocal left
            self._shown = {}
            torch._C._set_grad_enabled(grad)
            try:
                results.append(step(inputs))
            finally:
                left = torch.is_grad_enabled()
                torch._C._set_grad_enabled(left and not grad)
            return self._view(results[-1])

        self._safely(lambda recorder: recorder.before_step(inputs))
        torch._C._set_grad_enabled(False)
        try:
            view = self.guard.step(self.now, call, inputs)
        finally:
            torch._C._set_grad_enabled(left)
        self.ranks.meet("audit")
        self._safely(lambda recorder: self._record(recorder, view, inputs))
        self._shown = {}
        return results[0]

    def seen_loss(self, call: Callable[..., Any], inputs: Any) -> Any:
        """Note the logits and labels of a step: it returns neither where nobody asks for them."""
        names = self.desk.trainer.label_names
        labels = None
        if len(names) == 1 and isinstance(inputs, Mapping):
            labels = inputs.get(names[0])
        returned = call(inputs)
        if isinstance(returned, tuple) and len(returned) == 2:
            outputs = returned[1]
            logits = None
            if isinstance(outputs, Mapping):
                logits = outputs.get("logits")
            if isinstance(outputs, tuple) and len(outputs) > 1:
                logits = outputs[1]
            if isinstance(logits, Tensor):
                self._shown = {"logits": logits.detach(), "labels": labels}
        return returned

    def _view(self, result: Any) -> dict[str, Any]:
        """What a step has to show: its loss, logits and labels."""
        names = ("loss", "logits", "labels")
        given = (
            result
            if isinstance(result, tuple) and len(result) == 3
            else (None, None, None)
        )
        view = {n: v for n, v in zip(names, given, strict=True) if v is not None}
        view |= {n: v for n, v in self._shown.items() if v is not None}
        if isinstance(view.get("logits"), (tuple, list)) and view["logits"]:
            view["logits"] = view["logits"][0]
        return view

    # the matrix

    def _count(self, prefix: str) -> None:
        self._counting = self._recorder is not None
        known = Named(class_names(self.desk.config()))
        loader = self.desk.evaluates
        module = self.desk.module()
        self._safely(lambda recorder: recorder.start(prefix, module, loader, known))

    def _record(self, recorder: Recorder, view: Mapping[str, Any], inputs: Any) -> None:
        logits = view.get("logits")
        labels = view.get("labels")
        if recorder.explicit:
            recorder.after_step(view, inputs)
            return
        if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
            recorder.after_step(None, inputs)
            return
        why = label_refusal(self.desk.config(), logits, labels)
        if why:
            self.report.note(f"no confusion matrix, because {why}")
            recorder.abort()
            self._counting = False
            return
        recorder.see("outputs", "", pair_of(self.desk.config(), logits, labels))
        recorder.after_step(None, inputs)

    def _read(self, prefix: str, metrics: dict[str, Any]) -> None:
        """Add up over all ranks, and put the scores where the Trainer logs and chooses."""
        self.desk.matrices = {}
        if not self._counting:
            self.ranks.skip("matrix")
            return
        differing: list[Finding] = []

        def read(recorder: Recorder) -> None:
            recorder.steps_over()
            recorded = recorder.stop(self.now.epoch, self.now.step)
            for sentence in recorded.notes:
                self.report.note(sentence)
            differing.extend(recorded.findings)
            self.report.confusion.update(recorded.results)
            self.desk.matrices = recorded.results
            for result in recorded.results.values():
                differing.extend(self._merge(prefix, result, metrics))
            if self.ranks.rank == 0:
                for sentence in recorded.warnings:
                    warn_text(sentence)

        self._safely(read)
        self.ranks.skip("matrix")  # where that failed
        if self.ranks.rank == 0:
            self.guard.report_findings("scores", differing)

    def _merge(
        self, prefix: str, result: ConfusionResult, metrics: dict[str, Any]
    ) -> Iterator[Finding]:
        logs = (
            self._recorder.config.logs
            if self._recorder is not None
            else lambda *_: True
        )
        for score, value in result.scores.items():
            key = f"{prefix}_{score}"
            if key not in metrics:
                if logs(score, result.task) or score == self.desk.best_by():
                    metrics[key] = value
                continue
            theirs = metrics[key]
            if isinstance(theirs, bool) or not isinstance(theirs, (int, float)):
                continue
            difference = result.explained(score, float(theirs))
            if difference.rounds:
                self.report.note(f"`{key}` {difference.fact}")
            elif difference.fact:
                yield Finding(
                    "scores",
                    self.now.stage,
                    difference.fact,
                    difference.remedy,
                    key,
                    leads="subject",
                    epoch=self.now.epoch,
                    step=self.now.step,
                    certain=False,
                )

    def _safely(self, act: Callable[[Recorder], None]) -> None:
        """A bug of ours costs one warning and the matrix, never the run."""
        recorder = self._recorder
        if recorder is None or not self._counting:
            return
        try:
            act(recorder)
        except (EvalGuardError, EvalGuardWarning):
            raise  # what all ranks raise, or a filter makes an error of
        except Exception as error:  # our own bug must not stop a training run
            self._counting = False
            recorder.abort()
            if recorder.explicit and isinstance(error, ValueError):
                raise  # the user's arguments do not fit what the step gives
            broke(self.report, "the confusion matrix", "its evaluation", error)


def _arguments(loop: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """What an evaluation loop is called with, by name, whoever overrides it."""
    try:
        bound = inspect.signature(loop).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return dict(kwargs)
    bound.apply_defaults()
    return {**bound.arguments, **bound.arguments.get("kwargs", {})}
