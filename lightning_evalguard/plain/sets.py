"""Which samples does a script evaluate? The `data` check of one model, which holds neither."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.data.check import DataCheck
from lightning_evalguard.checks.data.history import History
from lightning_evalguard.data.loaders import Evaluated
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.plain.frames import at_site
from lightning_evalguard.plain.variables import LoaderName
from lightning_evalguard.report import Finding

_EVALUATIONS = 3  # of one loader that are looked at


class ModelSets(DataCheck):
    """The `data` check of one model of a script.

    Who prints the score of the training set beside that of a test set means it, and so does who
    calls it so. Where a set that is training's is called otherwise it is said at once; where
    nothing tells, at the end, unless another set was evaluated too.

    Attributes:
        looks: Whether the samples of the next training batches are to be remembered.
    """

    def __init__(self) -> None:
        self.history = History()
        super().__init__(self, self.history)
        self._numbers: dict[Hashable, int] = {}
        self._times: Counter[Hashable] = Counter()
        self._trained: dict[Hashable, Callable[[], Any]] = {}
        self._optimizers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._loader: Any = None
        self._called = LoaderName()
        self._moment = Moment("validate")
        self._found: list[Finding] = []
        self._waiting: list[Finding] = []
        self._of_training: set[int] = set()  # evaluated sets that are training's
        self._is_apart = False  # whether a set that is not training's was evaluated
        self._fits = True
        self.looks = False

    # what the check asks of its loop

    def evaluated(self) -> Evaluated:
        """The loader of the running evaluation."""
        return Evaluated(
            [self._loader],
            limits=[float("inf")],
            training=self.training(),
            first=self._moment.dataloader,
            names=[self._called.name or "loader"],
            order_matters=False,
        )

    def training(self) -> list[Any]:
        """The loaders that the model was trained with, as far as they still live."""
        loaders = [refer() for refer in self._trained.values()]
        return [loader for loader in loaders if loader is not None]

    # training

    def trains(
        self, root: nn.Module, optimizer: Any, number: Hashable, loader: Any
    ) -> None:
        """An optimizer is about to make a step in a loop over a loader.

        Args:
            root: The model.
            optimizer: The optimizer; a new one begins a new fit.
            number: Of what the loader gives.
            loader: The loader.
        """
        if optimizer not in self._optimizers:
            self._optimizers.add(optimizer)
            # what was learned on goes by the weights that the evaluations saw
            self.history.end(None)
            self.history.begin(root)
            self._trained.clear()
        if number in self._trained:
            return
        self._trained[number] = weakref.ref(loader)
        self.history.add("train", loader)
        self.looks = len(self._trained) == 1

    def trains_on(self, batch: Any) -> None:
        """A batch of such a loop."""
        self.looks = self.history.add_batch(batch)

    # evaluations

    def begins(
        self,
        root: nn.Module,
        now: Moment,
        number: Hashable,
        loader: Any,
        called: LoaderName,
    ) -> bool:
        """An evaluation of a loader begins; whether it is looked at.

        Args:
            root: The model.
            now: Where its training stands.
            number: Of what the loader gives.
            loader: The loader.
            called: How the script calls it.
        """
        if called.says == "train" or self._times[number] >= _EVALUATIONS:
            return False
        self._times[number] += 1
        self._root = root
        self._loader = loader
        self._called = called
        stage = "test" if called.says == "test" else "validate"
        place = self._numbers.setdefault(number, len(self._numbers))
        self._moment = Moment(stage, dataloader=place, fitting=now.fitting)
        for (_, i), one in self._sets.items():
            if i == place:
                one.loader = loader
        self._found = list(self.start(self._moment))
        return True

    def batch(self, batch: Any) -> None:
        """A step of it runs on `batch`; None where that is not known any more."""
        self._moment.batch += 1
        args: tuple[Any, ...] = ()
        if batch is not None:
            args = (batch,)
        self._found += self.before_step(self._moment, args)

    def judged(self, site: Site, is_scored: bool) -> list[Finding]:
        """It is over.

        Args:
            site: Where the model is called.
            is_scored: Whether something is scored in it.
        """
        found = self._found
        if is_scored:
            found = [*found, *self.stop(self._moment, None)]
        self.rest()
        if not is_scored:
            return []
        placed = [self._placed(finding, site) for finding in found]
        whole = [f for f in placed if f.fact in self.whole]
        place = self._moment.dataloader
        if not whole and place not in self._of_training:
            self._is_apart = True
            return placed
        self._of_training.add(place)
        if self._called.says:
            return whole
        self._waiting += [replace(finding, certain=False) for finding in whole]
        return []

    def rest(self) -> None:
        """Hold neither the model nor its data until the next evaluation."""
        self._root = self._loader = self._evaluated = None
        self._found = []
        self._leaks.clear()
        self._repeats.clear()
        for one in self._sets.values():
            one.loader = None

    @staticmethod
    def _placed(finding: Finding, site: Site) -> Finding:
        finding = replace(finding, stage="evaluate")
        if finding.location is not None:
            return finding
        return at_site(finding, site)

    # the end

    def over(self) -> list[Finding]:
        """The script is over: what is left to say."""
        if self._is_apart:
            return []
        return self._waiting


__all__ = ["ModelSets"]
