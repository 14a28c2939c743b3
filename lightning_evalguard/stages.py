"""A stage in every spelling: as Lightning runs it, logs it, and as people read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["fit", "sanity_check", "validate", "test", "predict", "evaluate"]


@dataclass(frozen=True)
class Spelling:
    """One stage.

    Attributes:
        stage: As findings carry it.
        words: As a sentence has it after "during".
        kind: The stage whose loop, step and hooks it shares.
        key: What logged names begin with, and loaders are called by; empty where nothing is logged.
        step: The method of the module that is one step.
        step_words: That step in a sentence.
    """

    stage: str
    words: str
    kind: str
    key: str
    step: str
    step_words: str

    @property
    def hooks(self) -> str:
        """What stands in the names of its hooks: ``on_validation_model_eval``."""
        return self.step.removesuffix("_step")


_STAGES = (
    Spelling("fit", "training", "fit", "train", "training_step", "training step"),
    Spelling(
        "sanity_check",
        "the sanity check",
        "validate",
        "val",
        "validation_step",
        "validation step",
    ),
    Spelling(
        "validate",
        "validation",
        "validate",
        "val",
        "validation_step",
        "validation step",
    ),
    Spelling("test", "testing", "test", "test", "test_step", "test step"),
    Spelling("predict", "prediction", "predict", "", "predict_step", "prediction step"),
    Spelling("evaluate", "evaluation", "evaluate", "", "", "step"),
)
_SPELLINGS = {spelling.stage: spelling for spelling in _STAGES}


def spelling(stage: str) -> Spelling:
    """Every spelling of a stage; one that is not known is spelt as it is.

    Example:
        >>> spelling("sanity_check").key, spelling("test").words
        ('val', 'testing')
    """
    return _SPELLINGS.get(stage) or Spelling(stage, stage, stage, stage, "", "step")


def same_kind(stage: str) -> frozenset[str]:
    """All stages that share this one's loop, step and hooks, itself among them.

    Example:
        >>> sorted(same_kind("validate"))
        ['sanity_check', 'validate']
    """
    kind = spelling(stage).kind
    return frozenset({stage, *(s.stage for s in _SPELLINGS.values() if s.kind == kind)})


def is_scored(stage: str) -> bool:
    """Whether scores of the stage are logged under a key: validation, its sanity check, test."""
    return stage != "fit" and bool(spelling(stage).key) and stage in _SPELLINGS


def is_sanity_check(stage: str) -> bool:
    """Whether nobody keeps the results of this stage."""
    return stage == "sanity_check"


SANITY_CHECK: Stage = "sanity_check"

__all__ = [
    "SANITY_CHECK",
    "Spelling",
    "Stage",
    "is_sanity_check",
    "is_scored",
    "same_kind",
    "spelling",
]
