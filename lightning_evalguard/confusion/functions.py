"""Losses and scores that are plain functions, and where a sigmoid was applied.

Dice and focal losses, `get_stats` of the segmentation libraries, scikit-learn's metrics and
torchmetrics' functions are followed in their code: it makes no difference who holds them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_evalguard.confusion.decisions import SKLEARN_RANKS, Decisions, ranks
from lightning_evalguard.confusion.losses import See
from lightning_evalguard.confusion.memory import StorageIdentity
from lightning_evalguard.confusion.sources import PREDS, TARGET, Pair, cuts
from lightning_evalguard.instruments.calls import Follow, can_follow, code_of
from lightning_evalguard.instruments.dispatch import compiles
from lightning_evalguard.instruments.patch import Wrap
from lightning_evalguard.instruments.source import owner_of, user_site
from lightning_evalguard.paths import shown_path

_INPUTS = (*PREDS, "input", "inputs", "x", "z", "a", "p")
_TARGETS = (*TARGET, "t", "b", "mask", "masks")
# Functions of which the first two arguments are predictions and targets, whatever they are called.
_SURE = re.compile(
    r"dice|focal|tversky|jaccard|lovasz|soft_?iou|get_stats|stat_scores|hamming",
    re.IGNORECASE,
)
# Others are so where their arguments say it, too.
_LIKELY = re.compile(
    r"loss|criterion|accuracy|(^|_)acc($|_)|f1|f_?beta|precision|recall|iou|cross_?entropy|(^|_)ce"
    r"($|_)|bce|nll|hinge|score|metric|confusion",
    re.IGNORECASE,
)
_LIBRARIES = (
    "segmentation_models_pytorch",
    "monai.losses",
    "kornia.losses",
    "torchvision.ops",
)
_SKLEARN = (
    "accuracy_score", "balanced_accuracy_score", "classification_report", "cohen_kappa_score",
    "confusion_matrix", "f1_score", "fbeta_score", "jaccard_score", "matthews_corrcoef",
    "multilabel_confusion_matrix", "precision_recall_fscore_support", "precision_score",
    "recall_score", "zero_one_loss", "hamming_loss",
)  # fmt: skip
# Those that are the same when the two are exchanged.
_SYMMETRIC = (
    "accuracy_score", "cohen_kappa_score", "hamming_loss", "matthews_corrcoef", "zero_one_loss",
)  # fmt: skip
_TORCHMETRICS = "torchmetrics.functional.classification."
_TASK = re.compile(r"^(binary|multiclass|multilabel)_")


class FunctionTap:
    """Sees what functions that judge predictions are called with.

    A function that calls a loss of torch's is seen through that.

    Between two steps of an evaluation the functions stay followed, and only call through: giving
    them their code back and taking it again would cost more than a small step.

    Args:
        see: Is told of each call, after it.
        pairs: How many pairs were seen so far.

    Attributes:
        decisions: What functions that rank are given.
        locates: Whether the line of a call is looked up.
        hears: Whether calls are reported now.
    """

    def __init__(self, see: See, pairs: Callable[[], int]) -> None:
        self._see, self._pairs = see, pairs
        self._follows: list[Follow] | None = None
        self.hears = self._is_followed = False
        self._inside = False
        self.locates = True
        self.decisions = Decisions()

    def open(self, module: nn.Module) -> None:
        """Follow the functions from now on."""
        if self.hears:
            return
        if self._follows is None:
            found = [] if compiles(module) else functions_of(module)
            self._follows = [Follow(f, self._around(f)) for f in found]
        self.hears = True
        if not self._is_followed:
            self._is_followed = True
            for follow in self._follows:
                follow.start()

    def pause(self) -> None:
        """Report no calls until `open`."""
        self.hears = False

    def close(self) -> None:
        """Leave the functions as they were."""
        self.hears = False
        if self._is_followed and self._follows is not None:
            self._is_followed = False
            for follow in self._follows:
                follow.stop()

    def _around(self, function: types.FunctionType) -> Callable[..., Any]:
        code = code_of(function)
        names = code.co_varnames[: code.co_argcount]
        whole = _is_score(function)
        of_sklearn = (function.__module__ or "").startswith("sklearn.")
        is_ranking = whole and ranks(function.__name__)

        def around(original: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
            if self._inside or not self.hears:
                return original(*args, **kwargs)
            before = self._pairs()
            self._inside = whole
            try:
                value = original(*args, **kwargs)
            finally:
                self._inside = False
            given = dict(zip(names, args, strict=False)) | kwargs
            if is_ranking:
                site = user_site(2, _package_of(function))
                scores = given.get(names[1 if of_sklearn else 0])
                self.decisions.add(function.__name__, scores, site)
                if of_sklearn:
                    return value
            if self._pairs() == before:
                self._report(function, given)
            return value

        return around

    def _report(self, function: types.FunctionType, given: dict[str, Any]) -> None:
        owner = given.pop("self", None)
        preds, target = _first_two(given)
        if preds is None or target is None:
            return
        site = None
        if self.locates:
            site = user_site(3, _package_of(function))
        where = ""
        if site is not None:
            where = f" at {shown_path(site.location)}"
        name = type(owner).__name__ if owner is not None else function.__name__
        pair = _pair_of(function, owner, given, preds, target)
        pair.source = f"`{name}`{where}"
        pair.location = site.location if site is not None else None
        self._see("function", name, pair, None)


def _first_two(given: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Predictions and target of a call, by the names of its arguments, else by their order."""
    tensors = {
        name: tensor
        for name, value in given.items()
        if (tensor := _as_tensor(value)) is not None
    }
    target = next((k for k in tensors if k in TARGET), None)
    target = target or next((k for k in tensors if k in _TARGETS), None)
    preds = next((k for k in tensors if k in _INPUTS and k != target), None)
    rest = [k for k in tensors if k not in (preds, target)]
    if preds is None and rest:
        preds = rest.pop(0)
    if target is None and rest:
        target = rest.pop(0)
    if preds is None or target is None:
        return None, None
    return tensors[preds], tensors[target]


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    try:
        array = None
        if isinstance(value, (list, np.ndarray)):
            array = np.asarray(value)
        if array is not None and array.dtype.kind in "biuf" and array.ndim:
            return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None


def _pair_of(
    function: Any, owner: Any, given: dict[str, Any], preds: Tensor, target: Tensor
) -> Pair:
    settings = {**(vars(owner) if owner is not None else {}), **given}
    mode = settings.get("mode") or settings.get("task")
    named = _TASK.match(function.__name__)
    task = mode
    if mode not in ("binary", "multiclass", "multilabel"):
        task = None
    task = named.group(1) if named else task
    threshold = settings.get("threshold")
    ignored = settings.get("ignore_index")
    of_logits = settings.get("from_logits")
    kind = None
    if isinstance(of_logits, bool):
        kind = "probs"
        if of_logits:
            kind = "logits"
    is_number = isinstance(threshold, float) and 0 < threshold < 1
    if (function.__module__ or "").startswith("sklearn."):
        task, preds, target = None, *_as_labels(preds, target)
    return Pair(
        preds,
        target,
        function.__name__,
        task=task,
        preds_are=kind if preds.is_floating_point() else None,
        num_classes=settings.get("num_classes") if task == "multiclass" else None,
        threshold=threshold if is_number else None,
        ignore_index=ignored if isinstance(ignored, int) else None,
        classification=True,
        judges=_is_score(function),
        cuts=cuts(function.__name__, task),
        is_ordered=function.__name__ not in _SYMMETRIC,
    )


def _package_of(function: Any) -> str:
    """The library whose frames stand between a function and whoever calls it."""
    package = (function.__module__ or "").partition(".")[0]
    if not _is_score(function):
        return ""
    return package


def _is_score(function: Any) -> bool:
    """Whether a function is one of those that compute scores alone."""
    return (function.__module__ or "").startswith(("sklearn.", _TORCHMETRICS))


def _as_labels(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What scikit-learn takes for labels, also where they are written as floating-point numbers."""
    return preds.long(), target.long()


# --- which functions -----------------------------------------------------------------------------


def functions_of(module: nn.Module) -> list[types.FunctionType]:
    """The functions that judge predictions: the user's own, and those of known libraries."""
    found: dict[int, types.FunctionType] = {}
    users, libraries = _homes()
    for function in (*_of_user(module, users), *_of_libraries(libraries)):
        if can_follow(function):
            found.setdefault(id(function), function)
    return list(found.values())


# Loaded modules in which nothing is looked for: thousands, of which each is asked once.
_passed: dict[str, Any] = {}


def _homes() -> tuple[dict[str, Any], dict[str, Any]]:
    """The loaded modules that are the user's, and those of known libraries."""
    users, libraries = {}, {}
    passed = _passed.get
    loaded = list(sys.modules.items())
    for name, home in [pair for pair in loaded if passed(pair[0]) is not pair[1]]:
        path = getattr(home, "__file__", None)
        if name.startswith((*_LIBRARIES, _TORCHMETRICS)):
            libraries[name] = home
        elif name == "__main__" or (isinstance(path, str) and owner_of(path) == "user"):
            users[name] = home
        else:
            _passed[name] = home
    return users, libraries


def _of_user(module: nn.Module, users: dict[str, Any]) -> Iterator[types.FunctionType]:
    homes = {c.__module__ for m in module.modules() for c in type(m).__mro__}
    for name in sorted(homes - users.keys()):
        if name in sys.modules and not _is_framework(name):
            yield from _in_namespace(sys.modules[name])
    for home in users.values():
        yield from _in_namespace(home)
    for part in module.modules():
        yield from _judging(type(part))
        for value in list(vars(part).values()):
            yield from _in_attribute(value)


def _in_namespace(home: Any) -> Iterator[types.FunctionType]:
    for value in list(vars(home).values()):
        if isinstance(value, (types.FunctionType, type)):
            yield from _judging(value)


def _is_framework(name: str) -> bool:
    return name.split(".")[0] in (
        "torch",
        "lightning",
        "pytorch_lightning",
        "torchmetrics",
    )


def _in_attribute(value: Any) -> Iterator[types.FunctionType]:
    if isinstance(value, dict):
        values = list(value.values())
    else:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
    for one in values:
        one = one.func if isinstance(one, functools.partial) else one
        if isinstance(one, (types.FunctionType, type)):
            yield from _judging(one)
        elif isinstance(one, nn.Module):
            yield from _judging(type(one))


def _judging(value: Any) -> Iterator[types.FunctionType]:
    """A function that judges predictions, or the ``forward`` of a loss module."""
    if isinstance(value, types.FunctionType):
        if _judges(value, value.__name__, 0):
            yield value
    elif isinstance(value, type) and issubclass(value, nn.Module):
        if not any(_named(value.__name__)) or _is_framework(value.__module__):
            return
        for name in ("forward", "__call__"):
            forward = vars(value).get(name)
            if isinstance(forward, types.FunctionType) and _judges(
                forward, value.__name__, 1
            ):
                yield forward


def _judges(function: types.FunctionType, name: str, first: int) -> bool:
    code = code_of(function)  # its own, also while another recorder follows it
    params = code.co_varnames[: code.co_argcount][first : first + 2]
    home = function.__module__ or ""
    if len(params) < 2 or _is_framework(home):
        return False
    is_sure, is_likely = _named(name)
    if is_sure:
        return params[0] not in ("self", "cls")
    both = any(p in _INPUTS for p in params) and any(p in _TARGETS for p in params)
    return is_likely and both


@functools.lru_cache(maxsize=8192)
def _named(name: str) -> tuple[bool, bool]:
    """Whether a name is surely one of a loss or a score, and whether it is likely one."""
    return _SURE.search(name) is not None, _LIKELY.search(name) is not None


def _of_libraries(libraries: dict[str, Any]) -> Iterator[types.FunctionType]:
    for name, home in libraries.items():
        if not name.startswith(_TORCHMETRICS):
            yield from _in_namespace(home)
            continue
        for bound, value in list(vars(home).items()):
            if _TASK.match(bound) and isinstance(value, types.FunctionType):
                yield value
    sklearn = sys.modules.get("sklearn.metrics")
    for name in (*_SKLEARN, *SKLEARN_RANKS) if sklearn is not None else ():
        function = inspect.unwrap(getattr(sklearn, name, None) or _SKLEARN.__len__)
        if isinstance(function, types.FunctionType):
            yield function


# --- sigmoids ------------------------------------------------------------------------------------


_SIGMOIDS = (
    (torch, "sigmoid"),
    (torch, "sigmoid_"),
    (torch.Tensor, "sigmoid"),
    (torch.Tensor, "sigmoid_"),
    (torch.special, "expit"),
)


class SigmoidTap:
    """Knows, for the length of the first step, which tensors came out of a sigmoid."""

    def __init__(self) -> None:
        self._given: list[StorageIdentity] = []
        self._wraps: list[Wrap] = []

    def open(self, module: nn.Module) -> None:
        """Note what `torch.sigmoid` gives, as a function and as a method."""
        if not self._wraps and not compiles(module):
            self._wraps = [Wrap(owner, name, self._note) for owner, name in _SIGMOIDS]

    def close(self) -> None:
        """Give both their names back, and forget what was noted."""
        self._given.clear()
        for wrap in self._wraps:
            wrap.remove()
        self._wraps.clear()

    def gave(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in what a sigmoid gave."""
        if not self._given:
            return False
        this = StorageIdentity(tensor)
        return any(this.shares_storage(other) for other in self._given)

    def _note(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if not torch.compiler.is_compiling():
            # a tensor without a storage, under vmap, or a fake one
            with contextlib.suppress(Exception):
                self._given.append(StorageIdentity(value))
        return value
