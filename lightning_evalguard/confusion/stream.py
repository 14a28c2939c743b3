"""One source of a loader's answers: its pairs in the running evaluation, and what they say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_evalguard.confusion.layout import Layout
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.memory import StorageIdentity, any_is_known


def versions_of(*tensors: Tensor) -> list[int]:
    """How often each was written to; -1 for inference tensors, which do not count it."""
    return [-1 if tensor.is_inference() else tensor._version for tensor in tensors]


@dataclass(eq=False)
class Stream:
    """One place at which a step shows predictions and targets, and what was counted of it.

    Attributes:
        kind: ``outputs``, ``metric``, ``loss``, ``function``, or ``epoch`` where they are shown
            once, after the last step.
        names: Of the metrics or of the loss.
        place: How many streams of that kind and name came before it in the step.
        role: Which tensor of the batch its target lies in, counted from 0; None for none.
        layout: How it is counted.
        state: What was counted.
        said: Where it is, in words.
        location: ``file:line`` of the call.
        late: Whether it is shown after the step returned, in a hook.
        swapped: Whether it is given ``(target, preds)``.
        shares: Whether rows of its target are shares of the classes.
        smoothed: Whether its target are labels of yes or no that the step smoothed.
        judges: Whether a score is computed of it, and no loss.
        cuts: Whether it is said which scores mean yes.
        is_array: Whether all that is known is that both became arrays.
        is_ordered: Whether it is said which of both the targets are.
        twin: The same counted as so many labels, until it is known that the shares always are.
        structured: Whether its target has a pattern that is made in the step.
        from_batch: Whether its target stands in the batch.
        is_whole_tensor: Whether it is a tensor of the batch with all of its elements.
        pattern: That target, to see whether later steps make the same one.
        is_returned: Whether the step returned this loss.
        is_changed: Whether it was changed in place after a loss or a metric was given it.
        value: What the loss returned in the first step.
        preds: Its answers in the first step.
        target: Their targets.
        cut: The scores that answers of yes or no were cut from in the first step.
        elements: How many they were.
        targets: Identities of what was counted in the running step.
        scores: The same of the predictions.
        versions: How often its predictions and its target had been written to.
        samples: Of the running step, counted along the first dimension.
        plain: What a pair looks like that is counted as it is shown.
        look: Its name, shapes and types, where a pair of a whole batch that looks so is counted
            and nothing is asked of it besides.
    """

    kind: str
    names: set[str]
    place: int
    role: int | None
    layout: Layout
    state: ConfusionMatrix
    said: str
    location: str | None = None
    late: bool = False
    swapped: bool = False
    shares: bool = False
    smoothed: bool = False
    judges: bool = False
    cuts: bool = True
    is_array: bool = False
    is_ordered: bool = True
    twin: ConfusionMatrix | None = None
    structured: bool = False
    from_batch: bool = False
    is_whole_tensor: bool = False
    pattern: Tensor | None = None
    is_returned: bool = False
    is_changed: bool = False
    value: Tensor | None = None
    preds: Tensor | None = None
    target: Tensor | None = None
    cut: Tensor | None = None
    elements: int = 0
    targets: list[StorageIdentity] = field(default_factory=list)
    scores: list[StorageIdentity] = field(default_factory=list)
    versions: list[int] = field(default_factory=lambda: [-1, -1])
    samples: int = 0
    plain: tuple[Any, ...] | None = None
    look: tuple[Any, ...] | None = None

    @property
    def accuracy(self) -> float:
        """Of the first step."""
        if self.preds is None or self.target is None:
            return float("nan")
        kept = self.target != self.layout.ignore_index
        right = (self.preds == self.target) & kept
        return float(right.sum()) / max(1, int(kept.sum()))

    @property
    def is_simple(self) -> bool:
        """Whether a pair is only counted: as the first of its name, once, and not compared."""
        once = self.twin is None and self.pattern is None
        return once and not self.place and not self.swapped

    def gave(self, returned: Any) -> bool:
        """Whether a step returned this loss."""
        if self.value is None or not isinstance(returned, Tensor):
            return False
        return returned.numel() == 1 and returned.data_ptr() == self.value.data_ptr()

    def was_before(self, later: Stream) -> bool:
        """Whether `later` shows what this one showed, changed in place since."""
        same = [
            any_is_known(self.scores, later.scores),
            any_is_known(self.targets, later.targets),
        ]
        was = self.versions
        now = later.versions
        return any(
            shared and 0 <= before != after
            for shared, before, after in zip(same, was, now, strict=True)
        )

    def begin_step(self) -> None:
        """Nothing of the step that begins was counted yet."""
        self.targets.clear()
        self.scores.clear()
        self.samples = 0

    def forget_step(self) -> None:
        """What only the choice needed."""
        self.value = self.preds = self.target = self.cut = None

    def keep_answers(self, preds: Tensor, target: Tensor) -> None:
        """Note what the first step answered, flat."""
        preds = preds.reshape(-1).clone()
        target = target.reshape(-1).clone()
        if self.preds is not None and self.target is not None:
            preds, target = (
                torch.cat((self.preds, preds)),
                torch.cat((self.target, target)),
            )
        self.preds, self.target, self.elements = preds, target, len(target)

    def keep_scores(self, scores: Tensor) -> None:
        """Note the scores of the first step, where its answers are yes or no."""
        if scores.is_floating_point() and self.layout.task != "multiclass":
            flat = scores.detach().reshape(-1)
            self.cut = flat.clone() if self.cut is None else torch.cat((self.cut, flat))
