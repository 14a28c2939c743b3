"""One Trainer of transformers under guard: what stands in the methods of the instance."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from lightning_evalguard.huggingface.desk import HuggingFaceDesk
from lightning_evalguard.huggingface.modes import RestoredModes
from lightning_evalguard.huggingface.run import HuggingFaceRun
from lightning_evalguard.instruments.patch import Doorway, Layer, Wrap
from lightning_evalguard.instruments.replay import replaying

GUARDED = "__evalguard_host__"  # the sentinel on a Trainer: who guards it


class Host:
    """One Trainer under guard: the wraps on the instance, which stay as long as the callback.

    Args:
        guard: The callback.
        trainer: The Trainer.
        make: Makes what guards one run of it.
    """

    def __init__(
        self, guard: object, trainer: Any, make: Callable[[Any], HuggingFaceRun]
    ) -> None:
        self.guard, self._make = guard, make
        # The wraps hold this object, and the Trainer the wraps.
        self._trainer = weakref.ref(trainer)
        self.run: HuggingFaceRun | None = None
        self._depth = 0
        self._wraps: list[Layer] = [
            Doorway(trainer, "train", self._train),
            Doorway(trainer, "evaluate", self._whole),
            Doorway(trainer, "predict", self._whole),
            Doorway(trainer, "evaluation_loop", self._evaluate),
            Wrap(trainer, "prediction_step", self._step),
            Wrap(trainer, "compute_loss", self._loss),
        ]

    def is_removed(self) -> bool:
        """Whether the callback was taken from the Trainer, which no event says."""
        trainer = self._trainer()
        if trainer is None:
            return True
        if any(
            callback is self.guard for callback in trainer.callback_handler.callbacks
        ):
            return False
        for wrap in self._wraps:
            wrap.remove()
        if vars(trainer).get(GUARDED) is self:
            delattr(trainer, GUARDED)
        return True

    # training

    def begin_fit(self) -> None:
        if self.run is not None:  # of a training that an exception ended unseen
            self._close(RuntimeError("training ended"))
        self.run = self._make(self._trainer())
        self.run.open(fitting=True)

    def end_fit(self) -> None:
        if self.run is not None:
            self._close(None)

    def _close(self, error: BaseException | None) -> None:
        run, self.run = self.run, None
        if run is not None:
            run.close(error)

    def _train(self, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        except BaseException as error:
            self._close(error)
            raise
        finally:
            self._close(None)

    def _loss(
        self,
        loss: Callable[..., Any],
        model: Any,
        inputs: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        run = self.run
        if run is None or replaying():
            return loss(model, inputs, *args, **kwargs)

        def call(inputs: Any) -> Any:
            return loss(model, inputs, *args, **kwargs)

        if run.now.stage == "fit":
            if torch.is_grad_enabled():
                return run.train_step(call, inputs)
            return call(inputs)
        return run.seen_loss(call, inputs)

    # evaluations

    def _whole(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Put back every mode once `evaluate` or `predict` is over.

        Not sooner: what the Trainer logs meanwhile may depend on the mode (trl 1.16).
        """
        if self.is_removed():
            return call(*args, **kwargs)
        modes = RestoredModes(HuggingFaceDesk(self._trainer()).roots())
        self._depth += 1
        try:
            return call(*args, **kwargs)
        finally:
            self._depth -= 1
            modes.restore()

    def _evaluate(self, loop: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.is_removed():
            return loop(*args, **kwargs)
        alone = self.run is None
        if self.run is None:
            self.run = self._make(self._trainer())
        modes = RestoredModes(self.run.desk.roots())
        try:
            if alone:
                self.run.open(fitting=False)
            output = self.run.evaluate(loop, *args, **kwargs)
        except BaseException as error:
            if alone:
                self._close(error)
            raise
        finally:
            if not self._depth:  # the loop alone was called
                modes.restore()
        if alone:
            self._close(None)
        return output

    def _step(
        self,
        step: Callable[..., Any],
        model: Any,
        inputs: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        run = self.run
        if run is None or run.now.stage == "fit" or replaying():
            return step(model, inputs, *args, **kwargs)
        return run.step(lambda batch: step(model, batch, *args, **kwargs), inputs)
