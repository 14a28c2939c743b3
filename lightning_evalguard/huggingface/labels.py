"""What the configuration of a model says of its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_evalguard.confusion.sources import Pair


class Named:
    """Class names, where a recorder looks for them."""

    def __init__(self, names: tuple[str, ...] | None) -> None:
        self.classes = names


def class_names(config: Any) -> tuple[str, ...] | None:
    """The names of `id2label`, unless nobody gave them."""
    named = getattr(config, "id2label", None)
    if not isinstance(named, Mapping) or sorted(named) != list(range(len(named))):
        return None
    names = tuple(str(named[i]) for i in range(len(named)))
    given = any(name != f"LABEL_{i}" for i, name in enumerate(names))
    if not given:
        return None
    return names


def label_refusal(config: Any, logits: Tensor, labels: Tensor) -> str:
    """Why logits and labels are no classification by the labels of `config`; empty if they are."""
    if config is None:
        return ""
    number = getattr(config, "num_labels", None)
    if getattr(config, "problem_type", None) == "regression" or number == 1:
        return "the model is a regression"
    if logits.ndim < 2 or number not in (logits.shape[-1], logits.shape[1]):
        return (
            f"logits of shape {tuple(logits.shape)} are not those of the {number} labels that the "
            "configuration has: pass metrics=ConfusionMetrics(...) to count them"
        )
    return ""


def pair_of(config: Any, logits: Tensor, labels: Tensor) -> Pair:
    """Logits and labels, the classes in the second dimension, as torch's losses have them."""
    multilabel = getattr(config, "problem_type", None) == "multi_label_classification"
    if (
        not multilabel
        and logits.ndim == labels.ndim + 1
        and logits.shape[:-1] == labels.shape
    ):
        logits = logits.movedim(-1, 1)
    return Pair(
        logits,
        labels,
        "the logits and labels of the step",
        task="multilabel" if multilabel else None,
        preds_are="logits",
        ignore_index=-100,
        classification=True,
        axis=1,
    )
