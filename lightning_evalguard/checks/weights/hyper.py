"""Do loaded weights belong to the hyper-parameters of the module that is evaluated with them?

Another number of heads, another activation or scale fits every shape. What training alone needs
(rates, epochs, dropout), what says where things lie and how a prediction is drawn may differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.weights import files, loads
from lightning_evalguard.checks.weights.loads import Load
from lightning_evalguard.checks.weights.origin import parameters_of
from lightning_evalguard.checks.weights.words import weights_finding
from lightning_evalguard.model.tensors import Inventory
from lightning_evalguard.report import Finding

_NAMED = 3
_OF_TRAINING = """
    lr lrs learning rate wd decay momentum beta1 beta2 betas nesterov optim optims optimizer
    optimizers optimiser opt adam adamw sgd sched scheduler schedulers schedule warmup cooldown
    anneal annealing gamma epoch epochs step steps iter iters iterations patience batch bs batchsize
    microbatch accumulate accumulation accum grad grads gradient clip clipping clipnorm dropout
    drop droprate droppath dropblock stochastic depthdrop noise smoothing smooth mixup cutmix aug
    augment augmentation augmentations augs transform loss losses criterion pos neg weighted lambda
    regularization regularizer penalty l1 l2 seed seeds ema swa sync freeze frozen unfreeze finetune
    finetuning tune init initializer initialization pretrained pretraining resume teacher monitor
    early stopping stop train training trainer fit val valid validation test eval evaluation
    predict split fold folds sampler shuffle
"""
_OF_THE_PLACE = """
    worker workers pin memory prefetch path paths dir dirs directory root folder file files filename
    filenames data dataset datasets datamodule cache download run runs exp experiment project name
    tag tags log logs logger logging verbose debug print save saving output out checkpoint ckpt
    version note notes user date time uuid hash host port url token key device devices gpu gpus cpu
    tpu accelerator precision amp fp16 bf16 half strategy ddp node nodes rank world compile compiled
    jit profile profiler wandb mlflow tensorboard plot plots config configs command args limit
"""
_OF_DRAWING = """
    beam beams topk topp nucleus greedy sampling samples threshold thresholds thresh nms iou conf
    confidence tta overlap
"""
_NEITHER = frozenset(f"{_OF_TRAINING} {_OF_THE_PLACE} {_OF_DRAWING}".split())
_PHRASES = (
    "max_len",
    "max_length",
    "top_k",
    "top_p",
    "num_return",
    "class_weight",
    "n_train",
)
_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")


def other_hyper_parameters(
    inventory: Inventory, hyper_parameters: Mapping[str, Any], now: Moment
) -> list[Finding]:
    """A finding where the module was built with others than the checkpoint that it got.

    Args:
        inventory: The model's tensors.
        hyper_parameters: The module's own.
        now: Where the run stands.
    """
    load = loads.loads_of(inventory.root)
    if load is None or load.hyper_parameters is None or load.builds_the_module:
        return []
    if not any(loads.loaded(held.tensor) for held in parameters_of(inventory)):
        return []  # trained since
    mine = files.flat_values(hyper_parameters)
    theirs = load.hyper_parameters
    names = [
        n for n in mine if n in theirs and _matters(n) and _differ(mine[n], theirs[n])
    ]
    if not names:
        return []
    return [_finding(names, mine, theirs, load, now)]


def _matters(name: str) -> bool:
    """Whether an evaluation of the same weights may depend on it, by its name."""
    said = [word.lower() for word in _WORDS.findall(name)]
    known = _NEITHER.intersection(said)
    return not (known or any(phrase in name.lower() for phrase in _PHRASES))


def _differ(mine: Any, theirs: Any) -> bool:
    if mine == theirs:
        return False
    # a place, whatever its name
    return not any(
        isinstance(v, str) and re.search(r"[/\\]", v) for v in (mine, theirs)
    )


def _finding(
    names: list[str],
    mine: Mapping[str, Any],
    theirs: Mapping[str, Any],
    load: Load,
    now: Moment,
) -> Finding:
    first = names[0]
    also = [
        f"`{name}` {mine[name]!r}, not {theirs[name]!r}" for name in names[1:_NAMED]
    ]
    others = ""
    if also:
        others = f"; so are {', '.join(also)}"
    more = ""
    if len(names) > _NAMED:
        more = f" and {len(names) - _NAMED} more"
    return weights_finding(
        now,
        f"is {mine[first]!r}, expected {theirs[first]!r} as in the checkpoint whose weights are "
        f"evaluated{others}{more}",
        "Build the module with the checkpoint's own: `load_from_checkpoint(path)`, and evaluate "
        "what it returns.",
        subject=f"hparams.{first}",
        site=load.site,
        certain=False,
    )
