"""Programs that get a remedy, each written a second time as the remedy says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from lightning_evalguard import EvalGuard, EvalGuardError, EvalGuardWarning, Report

Make = Callable[..., pl.Trainer]
Applied = Callable[[Make, bool], Report]
APPLIED: dict[str, list[Applied]] = {}
ALL = (
    "modes",
    "grad",
    "state",
    "stochastic",
    "batch",
    "data",
    "sync",
    "weights",
    "scores",
)
CHECKS = (*ALL, "selection")


def applied(*templates: str) -> Callable[[Applied], Applied]:
    """The case of a template: called with ``fixed=False`` it gets it, with True it is silent."""

    def add(case: Applied) -> Applied:
        for template in templates:
            APPLIED.setdefault(template, []).append(case)
        return case

    return add


def alone(*checks: str, **settings: Any) -> EvalGuard:
    """A guard of some checks."""
    off: dict[str, Any] = {name: "ignore" for name in CHECKS if name not in checks}
    return EvalGuard(**({"metrics": None} | off | settings))


def heard(guard: EvalGuard, act: Callable[[], Any]) -> Report:
    """What a guard reports of a run, stopped or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        try:
            act()
        except EvalGuardError as error:
            return error.report
    return guard.report


def fitted(
    make: Make, guard: EvalGuard, module: pl.LightningModule, **kwargs: Any
) -> Report:
    """What a guard reports of a fit."""
    callbacks = [*kwargs.pop("callbacks", ()), guard]
    return heard(guard, lambda: make(callbacks=callbacks, **kwargs).fit(module))


# Of the zoo: the honest way of writing a program that is just what its remedy says.
REWRITTEN: dict[str, str] = {
    # batch
    "Pass its running statistics, and training=self.training.": (
        "FunctionalBatchNormFollowsTheMode"
    ),
    "Compute it from each sample alone.": "StandardisedBySample",
    "Pass batch_first=True where `{}` is made, or give it (positions, samples, features).": (
        "RecurrenceOverTheTokens"
    ),
    "Leave it in eval mode during an evaluation.": "BatchNormInEval",
    "Pass track_running_stats=True, or use a norm of each sample (GroupNorm).": "TrackedBatchNorm",
    "Pack it: `pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)`, "
    "and take the last state of each sample from that.": "LastStateOfTheWords",
    "Leave the padding out of it: `(x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)`, "
    "where `mask` is 1 at a sample's own positions.": "MeanOverTheWords",
    'Fill the padding before it: `x.masked_fill(~mask[..., None], float("-inf"))`.': (
        "MaximumOverTheWords"
    ),
    "Pass the mask to the attention: `{}`, where `mask` is 1 at a sample's own positions.": (
        "AttentionToTheWords"
    ),
    "Normalise each position by itself, or over the positions that the mask keeps.": (
        "NormOfEachWord"
    ),
    "Take each sample's own last position: `x[torch.arange(len(x)), lengths - 1]`.": (
        "LastPositionIsTheLastWord"
    ),
    "Count positions from the mask: `(mask.cumsum(1) - 1).clamp(min=0)`.": (
        "PositionsCountedFromTheMask"
    ),
    # data
    "Catch it in the step: give `next()` a default, or loop over `itertools.cycle`.": "HasADefault",
    "Start anew in each call of `__iter__`.": "StreamThatRestarts",
    "Keep random transforms out of evaluation, or draw from a seeded generator": "FixedCollate",
    "Keep random transforms out of the evaluation's dataset.": "AugmentedTraining",
    "Split once, before anything is drawn or repeated, and evaluate what training does not see.": (
        "SplitOnce"
    ),
    "Pass the loaders as a list, or mode='max_size'.": "StopsAtTheLongest",
    "Evaluate all samples in order: leave out the sampler.": "DrawnTraining",
    "Pass drop_last=False.": "KeepsTheLast",
    "Pass {}=1.0.": "LimitedToAll",
    "Pass shuffle=False, or `Subset(dataset, indices)` instead of a sampler.": "OrderedSubset",
    # grad
    "Keep `.detach()`ed tensors.": "RunningTotal",
    "Call `self.{}.clear()` in `on_validation_epoch_start`.": "OutputsCleared",
    "Write `with torch.enable_grad():` around the lines that need it.": "SetGradEnabledByMode",
    "Remove `set_grad_enabled(True)`.": "CallbackWithGradModeOfItsOwn",
    "Remove the `enable_grad` around it.": "GradModeOfTheCaller",
    "Return `.detach()`ed tensors.": "NoGradInTheStep",
    # rng
    "Draw from a generator of its own": "DatasetDrawsFromItsOwn",
    "Give the loader a `generator=` of its own": "LoaderWithAGeneratorOfItsOwn",
    # scores
    "Call `self.{}.clear()` when the epoch ends.": "ListCleared",
    "Log it in the step, with self.log.": "MeanOfAll",
    "Weigh each batch by its samples, or log it in the step, with self.log.": "WeighedInADict",
    "Log a torchmetrics object, or compute it once when the epoch ends.": "F1OfAll",
    "Compute it after the last step, from what the steps of this evaluation kept.": "ValueOfNow",
    "Pass compute_groups=False to the MetricCollection.": "SeparateThresholds",
    "Pass batch_size=<number of samples> to self.log.": "WeighsBySamples",
    "Call `self.{}.reset()` once, when the epoch begins.": "ResetInTheFirst",
    "Hold one metric for each loader, in an nn.ModuleList.": "AMetricForEachLoader",
    "Call `self.{}.reset()` in `on_validation_epoch_start`, or log the metric object itself; train "
    "and validation need one each.": "ResetEachTime",
    "Call `self.{}.reset()` when the training epoch ends, not in an evaluation.": "ResetsItsOwn",
    "Compute it from all answers at once, {}": "AccuracyInPercent",
    # selection
    "Leave `every_n_train_steps` and `train_time_interval` out of {}, to save after each "
    "validation, or log `{}` in every step at which it saves.": "SavesAfterItValidated",
    "Pass `{}(save_on_train_epoch_end=False)`, to save after a validation.": (
        "SavesInEpochsThatAreValidated"
    ),
    'Return `{"interval": "epoch", "frequency": n}` with the scheduler, n being the '
    "`check_val_every_n_epoch` of the Trainer.": "RateFallsByCountingEachScoreOnce",
    "Compare the value that is logged.": "BestThatWasLogged",
    "Pass `{}(check_on_train_epoch_end=False)`.": "StopsByCountingEachScoreOnce",
    "Pass `{}(monitor=...)` a score of the validation set: a test set that chose says nothing "
    "about new samples.": "ChoosesByTheLatest",
    "Pass `{}`.": "KeepsTheHighestAccuracy",
    # state
    "Put it back before the evaluation ends, or do it in training.": "DropoutRateChangedAndPutBack",
    "Compute with the bounded value instead of writing it, e.g. "
    "`F.linear(x, self.weight * mask)`.": "WeightsMaskedForTheCall",
    "Change it only `if self.training:`.": "RunningNormaliserOfTraining",
    "Step the optimizer in training only.": "FusedOptimizerOfTraining",
    "Work on a copy: `.clone()`.": "BatchCopied",
    "Call `model.apply(torch.ao.quantization.disable_observer)` before evaluating.": (
        "QuantizationObserverOfTraining"
    ),
    "Look up with `F.embedding(x, weight)`: max_norm rewrites the rows it reads.": (
        "EmbeddingWithoutMaxNorm"
    ),
    "Keep the handle and call its `.remove()`.": "HooksRemoved",
    "Add parameter groups in training only.": "ParamGroupAddedBeforeTraining",
    "Change `{}` in training only.": "LearningRateChangedAfterTheEpoch",
    "Compute it in `forward`: modes are put back without a call of `train()`.": "MergesForTheCall",
    "Make it in `__init__` or `configure_model`.": "ModuleAddedInConfigureModel",
    "Run one batch through the model in `setup`.": "LazyModuleDryRun",
    "Freeze and unfreeze in training only.": "FrozenAndThawed",
    "Call `zero_grad()` in training only.": "AccumulatedGradientsKept",
    "Use `torch.autograd.grad(...)`, which leaves no `.grad` behind.": "GradientsOfTheInput",
    "Set `self.{}` to None in an override of `train()`.": "CachedProductDropped",
    # stochastic
    "Draw only in training: `if self.training:`.": "LayersSkippedByRandInTraining",
    "Take the mean in evaluation: `z = q.rsample() if self.training else q.mean`.": "NormalMean",
    "Pass training=self.training.": "FunctionalDropoutFollowsTheMode",
    "Call `.eval()` on the model before it is traced.": "FxTracedModules",
    "Call `.eval()` on the model before `torch.jit.trace`.": "TracedInEvalMode",
    "Pass dropout_p=p if self.training else 0.0.": "SdpaDropoutFollowsTheMode",
    "Take the most probable one in evaluation, e.g. `logits.argmax(-1)`, or draw only in "
    "training.": "ArgmaxInEval",
    "Call it once, before the run, or put the generator back, e.g. by "
    "`torch.random.fork_rng()`.": "SeedsInAFork",
    "Use a pool that draws nothing, e.g. `nn.AdaptiveMaxPool2d`.": "OrdinaryPooling",
    "Create it in `__init__`.": "DropoutMadeInForwardInMyMode",
    "Assign it to an attribute of the model.": "RegisteredDropoutInAClosure",
    "Make `{}` an nn.ModuleList.": "DropoutInAModuleList",
    "Make `{}` an nn.ModuleDict.": "DropoutInAModuleDict",
    # weights
    "Let it start earlier: its `should_update` has not been true yet.": "AveragedFromTheStart",
    "Call `update_parameters(model)` after each step of the optimizer, before this.": (
        "UpdatedWithinEachStep"
    ),
    "Call `torch.optim.swa_utils.update_bn(loader, averaged)` first, or pass `use_buffers=True`.": (
        "StatisticsOfItsOwn"
    ),
    "Evaluate the module that is trained, or update this copy after each optimizer step.": (
        "ShadowUpdated"
    ),
    "Replace it before `configure_optimizers` runs, e.g. in `__init__` or `configure_model`.": (
        "ReplacedBeforeTheOptimizer"
    ),
    "Pass its parameters to the optimizer in `configure_optimizers`, or freeze it with "
    "`.requires_grad_(False)`.": "FrozenBody",
    "Pass `strict=True` and rename the keys that the error names, or train what is new.": (
        "NameTranslated"
    ),
    'Pass `ckpt_path="..."` to the trainer, or call `load_from_checkpoint` and evaluate what it '
    "returns.": "Copied",
    'Pass `{k.removeprefix("{}"): v for k, v in state_dict.items()}`.': "PrefixTakenOff",
    'Pass the weights themselves, e.g. `checkpoint["state_dict"]`; a filter of its keys must name '
    "the prefix that they have.": "OneLevelDeeper",
    "Load its weights too, after all layers are made and initialised.": "HeadReplacedBeforeTheLoad",
}

# Those that other tests apply, or that cannot be applied here, with the reason.
_TWINS = "loops by hand: the twins of tests/lies/by_hand.py follow it"
ELSEWHERE: dict[str, str] = {
    "Call `{}.reset()` before the loop.": "scripts: tests/plain/test_plain_metrics.py follows it",
    "Add up all batches, each weighed by its samples.": _TWINS,
    "Add up each batch's value times its samples, and divide by all samples.": _TWINS,
    "Call `reset()` of `{}` before the loop.": _TWINS,
    "Set it to 0 before the loop.": _TWINS,
    "Count the samples where the right answers are counted: `total += len(target)`.": _TWINS,
    "Keep what each batch predicts, and compute the score once after the loop.": _TWINS,
    "Share them out: leave `use_distributed_sampler` on, or, for a stream, take every "
    "`trainer.world_size`-th sample from `trainer.global_rank` on in its `__iter__`.": (
        "several ranks"
    ),
    "Pass ConfusionMetrics(threshold=...) where it is cut at a threshold of its own, {}": (
        "where no line shows the threshold; that which names it is applied"
    ),
    "Remove `{}`, or write `with {}` around the draws.": "Monte Carlo dropout: not yet applied",
    "Log the metric object itself: `self.log({}, self.{})`.": "not yet applied",
    "Take the mean in evaluation: `z = {} if self.training else {}`.": (
        "tests/test_honest_programs.py has the programs that get it"
    ),
    "Leave it out of the step.": "`torch.cuda.synchronize` fails where there is no CUDA",
    "Compute it from all ranks' answers: log a torchmetrics object, or gather them with "
    "self.all_gather.": ("several ranks: tests/checks/test_scores_on_ranks.py"),
    "Pass sync_dist=True to self.log, or log a torchmetrics object.": (
        "several ranks: tests/checks/test_scores_on_ranks.py"
    ),
    "Log it in the step with sync_dist=True, or share the samples out evenly.": (
        "several ranks: tests/checks/test_scores_on_ranks.py"
    ),
    "Log a torchmetrics object.": "several ranks: tests/checks/test_scores_on_ranks.py",
    "Load or set the weights on every rank before `setup` ends, or broadcast them from rank 0.": (
        "several ranks: tests/test_ranks.py"
    ),
    "Pass `Trainer(sync_batchnorm=True)`, or reduce the statistics before the evaluation.": (
        "several ranks on devices: SyncBatchNorm refuses the CPU"
    ),
    "Take the scores of the confusion matrix, which counts each once, or evaluate on one device.": (
        "several ranks: tests/test_ranks.py"
    ),
}
