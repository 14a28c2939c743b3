"""The one list of checks: their names, default policies and rule texts. Needs the stdlib alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """What is known of a check before it runs.

    Attributes:
        name: The keyword of `EvalGuard`, the tag of the message, the name of the file.
        default: The policy of a bare guard.
        title: The rule's name in SARIF.
        violation: What a finding means, in one sentence.
        why: Why that matters, in a few words, where no fact says it closer.
        help: Why it matters and what to do.
        fixable: Whether the policy ``"fix"`` is offered.
        stops_run: Whether the number itself is wrong: then a certain finding is an error.
        in_plain_loops: Whether `evaluating` runs it too.
    """

    name: str
    default: str
    title: str
    violation: str
    why: str
    help: str
    fixable: bool = False
    stops_run: bool = False
    in_plain_loops: bool = False


_LISTED = (
    Rule(
        "modes",
        "error",
        "WrongMode",
        "A module is in the wrong mode.",
        "It computes something else in this mode.",
        "In eval mode dropout is off and batch norm uses what it learned. A module in train mode "
        "makes an evaluation depend on chance and on the other samples; one in eval mode while it "
        "trains learns something else. Remove the `.train()` or `.eval()` that the message names, "
        'or pass `modes="fix"`.',
        fixable=True,
        stops_run=True,
        in_plain_loops=True,
    ),
    Rule(
        "grad",
        "error",
        "GradientsInEvaluation",
        "An evaluation records an autograd graph.",
        "Each batch builds a graph nobody uses.",
        "A graph that is kept from batch to batch fills the memory. Remove what switches grad mode "
        "on, and detach what is kept.",
        stops_run=True,
        in_plain_loops=True,
    ),
    Rule(
        "state",
        "error",
        "EvaluationChangesState",
        "An evaluation changes the model or its training.",
        "Evaluating more often gives another model.",
        "Weights, buffers, optimizers and settings must be after an evaluation what they were "
        "before it, or validating more often gives another model.",
        stops_run=True,
        in_plain_loops=True,
    ),
    Rule(
        "stochastic",
        "error",
        "RandomEvaluation",
        "An evaluation step draws random numbers.",
        "Scores change from run to run.",
        "Evaluated twice, the model gives two scores. Functional dropout needs "
        "`training=self.training`; what is meant is allowed by name: "
        '`EvalGuard(allow={"stochastic": [...]})`.',
        stops_run=True,
        in_plain_loops=True,
    ),
    Rule(
        "batch",
        "error",
        "OutputDependsOnBatch",
        "A sample's output depends on the other samples of its batch.",
        "Scores depend on batch size and order.",
        "Then a score depends on the batch size and the order of the samples.",
        stops_run=True,
        in_plain_loops=True,
    ),
    Rule(
        "rng",
        "ignore",
        "EvaluationMovesGenerators",
        "An evaluation moves the shared random generators.",
        "Evaluating more often gives another model.",
        'Training then differs with and without validation. Pass `rng="fix"`.',
        fixable=True,
        stops_run=True,
        in_plain_loops=True,
    ),
    Rule(
        "data",
        "warn",
        "EvaluationData",
        "The evaluation set is not what it should be.",
        "The score is of other samples.",
        "It must be the same each time, counted once, and apart from the training set.",
    ),
    Rule(
        "sync",
        "warn",
        "HostWaitsForDevice",
        "The host waits for the device in every step.",
        "The device runs out of work.",
        "While it waits, no work is queued for the device. Keep tensors and read them once after "
        "the last batch, or log them with `self.log`.",
    ),
    Rule(
        "weights",
        "warn",
        "WeightsNotMeant",
        "The weights that are evaluated are not the ones that are meant.",
        "The score is another model's.",
        "Weights that were never loaded, never trained or never averaged give a score that says "
        "nothing about the model.",
    ),
    Rule(
        "scores",
        "warn",
        "ScoreDiffers",
        "A logged score is not what its name claims.",
        "Whoever reads it is misled.",
        "Often a metric is never reset, averaged over batches, or micro-averaged. Log the metric "
        "object itself, or let the guard log the score.",
    ),
    Rule(
        "selection",
        "warn",
        "WrongChoice",
        "A checkpoint or a stop is chosen by a score that does not justify it.",
        "The wrong model is chosen.",
        "A score that should be maximised and is minimised, or that is older than the weights "
        "saved under it, selects the wrong model.",
    ),
)

RULES = {rule.name: rule for rule in _LISTED}
CHECKS = frozenset(RULES)
DOCUMENTATION = (
    "https://OWNER.github.io/lightning-evalguard"  # as pyproject.toml has it
)


def rule_of(check: str) -> Rule | None:
    """The rule of a finding's `check`; ``metrics``, as records of 0.1 have it, is ``scores``."""
    return RULES.get({"metrics": "scores"}.get(check, check))


def stops_run(check: str) -> bool:
    """Whether a certain finding of `check` stops the run of a bare guard."""
    rule = rule_of(check)
    return rule is None or rule.stops_run


def page_of(check: str) -> str | None:
    """Where the docs say what `check` finds and what stays silent; None for one that is unknown.

    Example:
        >>> page_of("modes").removeprefix(DOCUMENTATION), page_of("mode")
        ('/checks/modes/', None)
    """
    rule = rule_of(check)
    if rule is None:
        return None
    return f"{DOCUMENTATION}/checks/{rule.name}/"
