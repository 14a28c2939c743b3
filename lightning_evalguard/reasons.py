"""Why each kind of finding matters, in a few words: all of them, to be read side by side.

A message says what is so, why that matters, and what to write. The reason hangs on what a fact
says, so it is found by words of the fact; a test holds each row against the sentences of its
check. A check that knows better gives its finding a `why` of its own, as `modes` does.
"""

from __future__ import annotations

from lightning_evalguard.checks.registry import rule_of

LONGEST = 8  # words of a reason

_ANOTHER_MODEL = "Evaluating more often gives another model."
_BATCHING = "Scores depend on batch size and order."
_NOT_COMPARABLE = "Scores of two epochs do not compare."
_LEFT_OUT = "The score covers only a part."
_LAST_BATCH = "All other samples do not count."
_EARLIER = "Earlier samples are in the score."
_BY_BATCH = "It changes with the batch size."
_NOT_LEARNING = "That part of the model never learns."
_UNUSED_GRAPH = "Each batch builds a graph nobody uses."
_GROWS = "Memory grows with every batch."

# By check: words of a fact, and why it matters. The first row that fits is said, else the rule's.
REASONS: dict[str, tuple[tuple[str, str], ...]] = {
    "modes": (
        ("running statistics still move", "Each epoch it computes something else."),
        ("dropout or the like switched on", "What it gives training is random."),
    ),
    "grad": (
        ("keeps an autograd graph", _GROWS),
        ("of more than one evaluation", "Memory grows with every evaluation."),
        ("returned an autograd graph", "The graph stays in memory."),
        ("still held batches later", _GROWS),
        ("no backward pass uses", "It costs memory and time."),
        ("left on by a hook", "Later hooks build graphs nobody uses."),
    ),
    "state": (
        ("also computes with it", "Another order gives another score."),
        ("changed in place during the step", "Whoever reads it next gets other data."),
        ("initialized lazy modules", "The optimizer may have missed it."),
        ("none to stay", "They run in training, too."),
        ("was replaced by another Parameter", "The new one is never trained."),
        ("to requires_grad=False", "It stops training from there on."),
        ("to requires_grad=True", "What was frozen trains from there on."),
        ("lost the gradient", "The next update misses what was lost."),
        ("`.grad` to be what it was", "Evaluation data enter the next update."),
        ("caches a tensor computed from", "Its parameters stop learning."),
    ),
    "stochastic": (("sets the seed", "Training draws the same numbers each epoch."),),
    "data": (
        ("training set has", "Equal numbers mean different things."),
        ("numbered as in training", "Equal numbers mean different things."),
        ("as in the training set", "The model's answers are misread."),
        ("which the training set does not have", "The model never learned them."),
        ("as in training", "The model never saw such inputs."),
        ("than in training", "The model never saw such inputs."),
        ("groups by", "The model knows these groups already."),
        ("the validation set", "The model was chosen on them."),
        (" too (", "The model knows the answers already."),
        ("nodes or edges of", "The model knows the answers already."),
        ("gave no batch", "This evaluation has no score."),
        ("gave other samples", _NOT_COMPARABLE),
        ("draws other samples", _NOT_COMPARABLE),
        ("leaves out other samples", _NOT_COMPARABLE),
        ("read twice differs", _NOT_COMPARABLE),
        ("generators that training draws from", _ANOTHER_MODEL),
        ("StopIteration", _LEFT_OUT),
        ("and drops the rest", _LEFT_OUT),
        ("beside other samples", _BATCHING),
        ("leaves out the last", _LEFT_OUT),
        ("leaves out the rest", _LEFT_OUT),
        ("batches, expected all of them", _LEFT_OUT),
        ("scaled by its own statistics", "The sets agree in no number."),
        ("of the inputs is the", "The model is given the answers."),
        ("of the inputs are the label", "The model is given the answers."),
        ("overlap one of", "The model knows the answers already."),
        ("DistributedSampler repeats", "Means of self.log count them twice."),
        ("max_size_cycle", "Some samples count more than others."),
        ("repetitions", "Some samples count more than others."),
    ),
    "weights": (
        ("weights that training began with", "The score leaves all training out."),
        ("before anything was averaged", "The score leaves all training out."),
        ("averaged nothing: it begins", "The averaging was in vain."),
        ("averaged nothing and put", "What was trained is lost."),
        ("the fit ended before its last epoch", "The averaging was in vain."),
        ("batch statistics of other weights", "It normalises with the wrong numbers."),
        ("as in the checkpoint whose", "The same weights compute something else."),
        ("holds the tensors themselves", "The best weights were not kept."),
        ("training begins with", "The pretraining does not arrive."),
        ("frozen as initialised", "Frozen noise is never trained."),
        ("a load matched", "The score is not the checkpoint's."),
        ("a running mean from before", "It normalises with the wrong numbers."),
        ("a running mean of 0", "It normalises with the wrong numbers."),
        ("its spectral norm", "Its outputs have the wrong scale."),
        ("no optimizer", _NOT_LEARNING),
        ("no gradient reached", _NOT_LEARNING),
        ("gradients were exactly 0", _NOT_LEARNING),
        ("as drawn anew", "What was loaded or trained is lost."),
        ("never made a step", _NOT_LEARNING),
        ("training changes nothing of", "The score says nothing about training."),
        ("as it was initialised", "It answers by chance."),
        ("as initialised", "That part answers by chance."),
        ("a learning rate of 0", "Its steps were for nothing."),
        ("has other weights", "Each rank scores a model of its own."),
        ("other running statistics", "The score depends on which rank evaluates."),
        ("in this project's record", "The two do not compare."),
        ("used by the step", "Never trained, saved or moved to the device."),
        ("trained and registered nowhere", "No checkpoint has its weights."),
    ),
    "scores": (
        ("right answers of the loop divided by", "It is no share of the samples."),
        ("over this evaluation and the one before", _EARLIER),
        ("divided by the number of samples", "It is too small by the batch size."),
        ("the indices of classes", "No index says how sure an answer is."),
        ("full batches, though they had", "It is too small."),
        ("small ones weigh too much", "Small ones weigh too much."),
        ("self.log weighs a batch", "Some samples count more than others."),
        ("is never cleared", _EARLIER),
        ("is not reset", _EARLIER),
        ("from before this evaluation", _EARLIER),
        ("of the evaluation before", "It lags one evaluation behind."),
        ("reset in every step", _LAST_BATCH),
        ("reset within the evaluation", _LEFT_OUT),
        ("was reset by an evaluation", "It covers only the epoch's end."),
        ("it is logged in", _LAST_BATCH),
        ("reduce_fx=", "It is no score of the set."),
        ("batch's", _LAST_BATCH),
        ("it is the mean", _BY_BATCH),
        ("mean of", _BY_BATCH),
        ("takes its state from", "It has another metric's value."),
        ("returned None and logged nothing", "The hardest samples may be missing."),
        ("is one metric for", "Its scores belong to no set."),
        ("in percent", "It is a hundred times too large."),
        ("micro averaging", "Rare classes hardly count in it."),
        ("classes that do not occur", "It comes out too low."),
        ("taken for probabilities", "Right answers count as wrong."),
        ("it cuts logits at", "Right answers count as wrong."),
        ("it is cut at a probability", "The matrix counts other answers."),
        ("the sigmoid stands twice", "Gradients come out too small."),
        ("the softmax stands twice", "Gradients come out too small."),
        ("expected their logarithms", "The loss rewards the wrong thing."),
        ("(target, preds)", "Precision and recall trade places."),
        ("changed in place after", "Loss and score see different answers."),
        ("written in place in the step", "The matrix may be wrong."),
        ("that the loader gave", "Its scores are of fewer samples."),
    ),
    "selection": (
        ("every checkpoint is kept", "The worst one counts as best."),
        ("for the best, expected", "It keeps the worst model."),
        ("stops when it no longer", "Training ends while it improves."),
        ("lowers the rate", "The rate drops while it improves."),
        ("under it, expected one of those", "It is another model's score."),
        ("counts the same value", "Patience runs out too early."),
        ("from an earlier fit", "It may keep nothing of this fit."),
        ("never logged", "It chooses by another number."),
        ("saves a checkpoint under", "It chooses by another number."),
        ("score of the test set", "The test score comes out too high."),
        ("scored on the test set", "The best of them is partly luck."),
    ),
}


def why_of(check: str, fact: str) -> str:
    """Why a fact matters, as one sentence; empty for a check that nobody knows.

    Example:
        >>> why_of("grad", "returned an autograd graph, expected tensors without `grad_fn`")
        'The graph stays in memory.'
        >>> why_of("stochastic", "`torch.randn(3)` drew random numbers in eval mode")
        'Scores change from run to run.'
    """
    rule = rule_of(check)
    if rule is None:
        return ""
    for words, why in REASONS.get(rule.name, ()):
        if words in fact:
            return why
    return rule.why


def says(fact: str, why: str) -> bool:
    """Whether a fact says itself why it matters.

    Example:
        >>> says("is trained: no checkpoint has its weights", "No checkpoint has its weights.")
        True
    """
    return why.rstrip(".").lower() in fact.lower()
