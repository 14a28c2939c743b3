"""What a plain script did wrong around its evaluations, in words, at its line."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_evalguard.checks.modes import consequences
from lightning_evalguard.checks.modes.callers import calls as recorded_calls
from lightning_evalguard.checks.modes.learning import trains as trains_by_name
from lightning_evalguard.checks.modes.plans import keeps_eval
from lightning_evalguard.instruments.source import Site
from lightning_evalguard.model.tree import Modes, collapse, parent
from lightning_evalguard.plain.models import Model
from lightning_evalguard.plain.window import ModelCall, Window
from lightning_evalguard.report import Finding

_SAMPLES = re.compile(
    r"mc_|_mc|mcd|monte|dropout|uncertain|bayes|stochastic|ensemble|epistemic"
)
_NO_GRAD = "expected torch.no_grad() or inference_mode()"
_CALLEE = re.compile(r"([A-Za-z_][\w.\[\]\"']*)\(")
_FUNCTIONAL = re.compile(r"\bfunctional_call\(\s*([A-Za-z_][\w.]*)\s*,")


def evaluated_in_train_mode(call: ModelCall) -> list[Finding]:
    """A model is evaluated while a mode makes it compute something else.

    Where the code around says that it samples, this is a suspicion; so it is where only the
    model's own code asks for the mode, as a detector does that returns losses in train mode.
    """
    model = call.model
    awake = model.awake(call.flags)
    if not awake or "modes" in call.allowed:
        return []
    certain = any(model.effects[i] == "certain" for i in awake)
    certain = certain and not any(_SAMPLES.search(f.lower()) for f in call.functions)
    name = callee(call.site, model)
    around = "call"
    if call.key[-1]:
        around = "loop"
    if call.mode:
        fact = f"is in train mode while it is evaluated ({model.listed(awake)}), expected eval mode"
        remedy = (
            f"Call `{name}.eval()` before this {around} and `{name}.train()` after it."
        )
        why = consequences.of_evaluating(_modules(model, ""))
        return [_of_call("modes", call, fact, remedy, certain, why)]
    findings = []
    named = {model.names[i]: i for i in awake}
    root = model.inner()
    for top, names in collapse(named).items():
        others = ""
        if len(names) > 1:
            others = f" with {len(names) - 1} submodules"
        fact = (
            f"is in train mode{others} while the model is evaluated, expected eval mode"
        )
        site = _site_of_mode(root, top, True) or call.site
        remedy = f"Call `.eval()` on it, or remove {site.quoted}."
        if site is call.site:
            remedy = f"Call `{name}.eval()` before this {around}."
        findings.append(
            _at(
                "modes",
                site,
                top,
                model.kinds[named[top]],
                fact,
                remedy,
                certain,
                "subject",
                why=consequences.of_evaluating(_modules(model, top)),
            )
        )
    return findings


def evaluated_with_a_graph(window: Window, call: ModelCall) -> list[Finding]:
    """No backward pass follows, and each batch records what one would need."""
    if "grad" in call.allowed:
        return []
    kept = window.kept_graphs()
    fact = "is evaluated with grad mode on: each batch records an autograd graph"
    if window.batches < 2:
        fact = "is evaluated with grad mode on: it records an autograd graph"
    fact += (
        " that is still held batches later"
        if kept > 1
        else " that no backward pass uses"
    )
    function = call.site.function
    around = "call"
    if window.batches > 1:
        around = "loop"
    remedy = f"Write `with torch.no_grad():` around this {around}"
    if function.isidentifier():
        remedy += f", or `@torch.no_grad()` above `def {function}`"
    if kept > 1:
        remedy += ", and keep numbers or `.detach()`ed tensors"
    # Where neither `eval()` was called nor a mode matters, only the memory says that it is wrong;
    # and one forward over a whole set takes little of it.
    is_meant = not call.mode or bool(call.model.awake(call.flags))
    certain = kept > 1 or (is_meant and (window.batches > 1 or not window.alone))
    return [_of_call("grad", call, f"{fact}, {_NO_GRAD}", f"{remedy}.", certain)]


def trains_in_eval_mode(
    model: Model, call: ModelCall, of_optimizer: set[int]
) -> list[Finding]:
    """Parameters train while dropout is off or statistics stand still, which nobody took back.

    Args:
        model: The model.
        call: Its call in this step.
        of_optimizer: The ``id`` of each parameter that the optimizer changes.
    """
    root = model.inner()
    asleep = model.asleep(call.flags)
    if root is None or not asleep or "modes" in call.allowed:
        return []
    modes = Modes(root)
    trains = trains_by_name(modes)
    modules = dict(zip(modes.names, modes.modules, strict=True))
    left = {}
    for i in asleep:
        name = model.names[i]
        if trains.get(name) and not _is_meant(name, modules, trains, of_optimizer):
            left[name] = i
    if not left:
        return []
    alone = _set_one_by_one(left, modules)
    if alone and all(isinstance(modules[name], _NormBase) for name in left):
        # batch norms that are frozen: their statistics are meant to stand still
        return []
    trained_otherwise = model.accepted is not None and any(
        model.accepted[i] for i in left.values()
    )
    forgotten = (
        trained_otherwise
        or (model.evaluated and not alone)
        or not _by_user(left, modules)
    )
    certain = forgotten and any(model.effects[i] == "certain" for i in left.values())
    return _asleep(model, call, left, modules, certain)


def _asleep(
    model: Model,
    call: ModelCall,
    left: dict[str, int],
    modules: dict[str, nn.Module],
    certain: bool,
) -> list[Finding]:
    by_top: dict[str, list[str]] = {}
    for name in left:
        by_top.setdefault(_top_in_eval(name, modules), []).append(name)
    findings = []
    for top, names in by_top.items():
        listed = model.listed([left[n] for n in names])
        over = ""
        if names != [top]:
            over = f" ({listed})"
        fact = f"is in eval mode{over} while its parameters train, expected train mode"
        site = _site_of_mode(modules.get(""), top, False)
        name = callee(call.site, model)
        path = name
        if top:
            path = f"{name}.{top}"
        remedy = f"Call `{path}.train()` before the training loop, in each epoch."
        if site is not None and site.owner == "user":
            said = site.expression
            path = said.removesuffix(".eval()") if said.endswith(".eval()") else path
            remedy = f"Call `{path}.train()` after `{said}`, before training goes on."
        kind = type(modules[top]).__name__
        at = site or call.site
        why = consequences.of_sleeping(modules[name] for name in names)
        findings.append(
            _at("modes", at, top, kind, fact, remedy, certain, "subject", "fit", why)
        )
    return findings


def woken_by_train(model: Model, call: ModelCall) -> list[Finding]:
    """What was in eval mode while it trained is in train mode after an evaluation.

    ``train()`` on the whole model wakes the parts that were kept in eval mode, too.
    """
    before = model.accepted
    root = model.inner()
    if (
        root is None
        or before is None
        or not model.evaluated
        or len(before) != len(call.flags)
    ):
        return []
    if all(call.flags) is False or not any(before) or "modes" in call.allowed:
        return []
    trains = trains_by_name(Modes(root))
    woken = {}
    for i in model.awake(call.flags):
        name = model.names[i]
        if not before[i] and not trains.get(name):
            woken[name] = i
    findings = []
    for top, names in collapse(woken).items():
        others = ""
        if len(names) > 1:
            others = f" with {len(names) - 1} submodules"
        fact = (
            f"went from eval to train mode{others} with the evaluation although its parameters "
            "are frozen, expected eval mode as in the steps before"
        )
        site = _site_of_mode(root, top, True) or call.site
        remedy = "Put it back in eval mode after this line."
        kind = model.kinds[woken[top]]
        why = consequences.of_waking(_modules(model, top))
        findings.append(
            _at("modes", site, top, kind, fact, remedy, True, "subject", "fit", why)
        )
    return findings


def callee(site: Site, model: Model) -> str:
    """The name under which the script calls a model: ``model`` of ``model(x)``."""
    functional = _FUNCTIONAL.search(site.expression)
    if functional is not None:
        return functional.group(1)
    for match in _CALLEE.finditer(site.expression):
        name = match.group(1)
        if not name.startswith(("torch.", "F.", "nn.", "print", "float", "criterion")):
            return name
    return "model"


def _is_meant(
    name: str,
    modules: dict[str, nn.Module],
    trains: dict[str, bool],
    of_optimizer: set[int],
) -> bool:
    """Whether a part in eval mode is kept so, or does not train with this optimizer."""
    call = recorded_calls.last(modules[name])
    if call is not None and not call.mode and (call.inside_train or call.allowed):
        return True
    up: str | None = name
    around: nn.Module | None = None
    while up is not None:
        module = modules.get(up)
        if module is not None:
            kind: Any = type(module)
            if keeps_eval(kind):
                return True
            if around is None and next(module.parameters(), None) is not None:
                around = module
        up = parent(up)
    return around is not None and not any(
        id(p) in of_optimizer for p in around.parameters() if p.requires_grad
    )


def _set_one_by_one(left: dict[str, int], modules: dict[str, nn.Module]) -> bool:
    """Whether each was put in eval mode by itself, as who freezes batch norms does."""
    calls = {name: recorded_calls.last(modules[name]) for name in left}
    if any(call is None or call.mode for call in calls.values()):
        return False
    for name, call in calls.items():
        up = parent(name)
        if up is not None and recorded_calls.last(modules[up]) is call:
            return False
        if up is None:
            return False
    return True


def _by_user(left: dict[str, int], modules: dict[str, nn.Module]) -> bool:
    """Whether the script's own code put all of them in eval mode."""
    for name in left:
        call = recorded_calls.last(modules[name])
        if call is None or call.site is None or call.site.owner != "user":
            return False
    return True


def _top_in_eval(name: str, modules: dict[str, nn.Module]) -> str:
    top = name
    while (
        (up := parent(top)) is not None and up in modules and not modules[up].training
    ):
        top = up
    return top


def _site_of_mode(root: nn.Module | None, name: str, mode: bool) -> Site | None:
    """Where the module `name` was put in `mode`, where somebody called for it."""
    if root is None:
        return None
    module = dict(root.named_modules()).get(name)
    call = None
    if module is not None:
        call = recorded_calls.last(module)
    if call is not None and call.mode == mode:
        return call.site
    return None


def _modules(model: Model, name: str) -> list[nn.Module]:
    """The module of that name, if the model is still there."""
    root = model.inner()
    known: dict[str, nn.Module] = {}
    if root is not None:
        known = dict(root.named_modules())
    return [known[name]] if name in known else []


def _of_call(
    check: str,
    call: ModelCall,
    fact: str,
    remedy: str,
    certain: bool,
    why: str = "",
) -> Finding:
    kind = call.model.kind
    return _at(check, call.site, "", kind, fact, remedy, certain, "location", why=why)


def _at(
    check: str,
    site: Site,
    subject: str,
    kind: str,
    fact: str,
    remedy: str,
    certain: bool,
    leads: str,
    stage: str = "evaluate",
    why: str = "",
) -> Finding:
    return Finding(
        check=check,
        stage=stage,
        fact=fact,
        remedy=remedy,
        subject=subject,
        subject_type=kind,
        location=site.location,
        expression=site.expression,
        function=site.function,
        leads=leads,  # type: ignore[arg-type]
        certain=certain,
        # the whole model has no name: the function that evaluates it has
        pattern=site.function if not subject and site.function.isidentifier() else None,
        host="watch",
        why=why,
    )


__all__ = [
    "callee",
    "evaluated_in_train_mode",
    "evaluated_with_a_graph",
    "trains_in_eval_mode",
    "woken_by_train",
]
