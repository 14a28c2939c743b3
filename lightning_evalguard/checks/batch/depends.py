"""Does what a step computes of a sample depend on the padding that longer samples cause?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_evalguard.checks.batch.own import Comparison, Own
from lightning_evalguard.checks.batch.padding import Padded, padded
from lightning_evalguard.checks.check import Moment
from lightning_evalguard.data.batches import tensors
from lightning_evalguard.instruments.dispatch import ModuleNames, Op
from lightning_evalguard.instruments.replay import Look
from lightning_evalguard.instruments.source import Site, user_site
from lightning_evalguard.report import Finding

# A relative distance between two results of one sample that rounding may explain.
_FINE, _ON_DEVICE, _COARSE = 2e-5, 2e-3, 0.06
_NOISE = 20  # times the distance that two sizes of a batch make
_SAMPLES = 3  # short ones that are looked at
_GROWS = 0.1  # of the first distance: more padding makes another difference


class Padding:
    """Runs one sample with and without its padding, and says where its values first differ.

    Args:
        root: The module whose step it is.
        loader: Gives the loader that gave the batch, where there is one.
    """

    def __init__(self, root: nn.Module, loader: Callable[[int], Any]) -> None:
        self._root = root
        self._loader = loader
        self.notes: list[str] = []

    def look(self, now: Moment, look: Look) -> list[Finding]:
        """Run the step on a sample alone, with all its padding, and where they differ more.

        What one sample does not show another may: zeros are the largest values of few.
        """
        for nth in range(_SAMPLES):
            batch = padded(look.args[0], self._loader(now.dataloader), nth)
            if batch is None:
                return []
            findings = self._look_at(batch, now, look)
            if findings or self.notes:
                return findings
        return []

    def _look_at(self, batch: Padded, now: Moment, look: Look) -> list[Finding]:
        alone = Own(batch, 0.0)
        whole = Own(batch, 1.0)
        error = self._run(look, alone) or self._run(look, whole)
        if error is not None:  # who packs needs a sample that fills the length
            whole = Own(batch, 1.0, beside=True)
            error = self._run(look, alone) or self._run(look, whole)
        if error is not None:
            kind = type(error).__name__
            self.notes.append(
                f"batch: the step does not run on one padded sample ({kind}); whether its results "
                "depend on the padding is not known"
            )
            return []
        pair = Comparison(alone, whole, self._tolerance(alone, whole))
        apart = pair.distance()
        if apart <= pair.tolerance or apart <= self._noise(look, batch, pair):
            loss = pair.loss()
            if loss is None:
                return []
            return self._named(batch, now, look, whole, loss)
        place = pair.culprit()
        if pair.reaches(place):
            pair, place = self._with_less(look, batch, pair, apart)
            if pair is None:
                return []
        if place is None:
            return []
        return self._named(batch, now, look, whole, place)

    def _named(
        self, batch: Padded, now: Moment, look: Look, whole: Own, place: tuple[str, int]
    ) -> list[Finding]:
        findings = _Culprit(whole, self._root, place)
        if self._run(look, findings) is not None:
            return []
        return [_finding(now, batch, findings)]

    def _run(self, look: Look, run: Own, times: int = 2) -> Exception | None:
        run.clear()
        args = (run.padded.at(run.share, times, run.beside), *look.args[1:])
        with run.hooks():
            outcome = look.again(run, args=args)
        if outcome.error is None:
            run.returned(outcome.outputs)
        return outcome.error

    @staticmethod
    def _tolerance(*runs: Own) -> float:
        if any(run.coarse for run in runs):
            return _COARSE
        on_host = all(t.device.type == "cpu" for t in tensors(runs[0].padded.batch))
        if on_host:
            return _FINE
        return _ON_DEVICE

    def _noise(self, look: Look, batch: Padded, pair: Comparison) -> float:
        """What the same run gives on itself once more, and in a batch of another size."""
        found = 0.0
        for times in (2, 3):
            other = Own(batch, 1.0, pair.b.beside)
            if self._run(look, other, times) is None:
                found = max(found, Comparison(pair.b, other, pair.tolerance).distance())
        return found * _NOISE

    def _with_less(
        self, look: Look, batch: Padded, pair: Comparison, apart: float
    ) -> tuple[Any, tuple[str, int] | None]:
        """A kernel looks over the end of the sequence: what else differs, the more padding?

        That effect stands still as soon as the padding is longer than the kernels reach.
        """
        place = pair.culprit()
        assert place is not None, "something differs there"
        less = Own(batch, 0.5)
        longest = batch.longest
        steps = longest.own < longest.at(0.5) < longest.whole
        if not steps or self._run(look, less) is not None:
            grows = None
        else:
            grows = Comparison(less, pair.b, pair.tolerance)
        if grows is None or grows.distance() <= max(pair.tolerance, _GROWS * apart):
            name = pair.b.ops[place[1]].name
            self.notes.append(
                f"batch: the last positions of a sequence depend on whether padding follows, by "
                f"what `{name}` reaches; how much padding makes no difference"
            )
            return None, None
        return grows, grows.culprit()


class _Culprit(Own):
    """A run that says who gives what differs."""

    def __init__(self, like: Own, root: nn.Module, place: tuple[str, int]) -> None:
        super().__init__(like.padded, 1.0, like.beside)
        self.op = ""
        self.site: Site | None = None
        self.subject = ""
        self.module = root
        self.running: list[nn.Module] = []
        self.of_loss = False
        self._names = ModuleNames(root)
        self._place = place

    def after(self, op: Op) -> None:
        super().after(op)
        self.of_loss |= bool(self.losses) and self._place == ("op", self.losses[-1][0])
        if self._place == ("op", op.index):
            self.op, self.site = op.name, op.site
            self.running = list(op.modules())
            self.subject, self.module = self._names.nearest(self.running)

    def _heard(self, module: nn.Module) -> None:
        if self._place == ("module", len(self.modules) - 1):
            self.site = user_site()
            self.running = [module]
            self.subject, self.module = self._names.nearest([module])


# --- words ---------------------------------------------------------------------------------------

_PACK = (
    "Pack it: `pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)`, "
    "and take the last state of each sample from that."
)
_MEAN = (
    "Leave the padding out of it: `(x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)`, "
    "where `mask` is 1 at a sample's own positions."
)
_MAX = 'Fill the padding before it: `x.masked_fill(~mask[..., None], float("-inf"))`.'
_NORM = "Normalise each position by itself, or over the positions that the mask keeps."
_LAST = "Take each sample's own last position: `x[torch.arange(len(x)), lengths - 1]`."
_FIRST = "Count positions from the mask: `(mask.cumsum(1) - 1).clamp(min=0)`."
_LOSS = "Leave the padding out of it: pass `ignore_index=`, or `(loss * mask).sum() / mask.sum()`."
_ANY = "Compute it from the positions that the mask keeps."
_REMEDIES = (
    (("mean", "sum", "avg_pool", "logsumexp", "cumsum"), _MEAN),
    (("amax", "max", "adaptive_max_pool"), _MAX),
    (("norm", "var", "std"), _NORM),
    (("select", "slice", "index"), _LAST),
)


def _remedy(found: _Culprit, left: bool) -> str:
    if isinstance(found.module, nn.RNNBase) or "lstm" in found.op or "gru" in found.op:
        return _PACK
    if isinstance(found.module, nn.MultiheadAttention):
        return _attend(found)
    if found.of_loss:
        return _LOSS
    if left and found.op in ("embedding", "add", "slice", "index_select", "sin", "cos"):
        return _FIRST
    for words, remedy in _REMEDIES:
        if any(word in found.op for word in words):
            return remedy
    if any(word in found.op for word in _ATTENTION):
        return _attend(found)
    return _ANY


_ATTENTION = ("attention", "transformer_encoder", "bmm")


def _attend(found: _Culprit) -> str:
    """How the attention that runs takes its mask: by the outermost layer that is a library's."""
    masked = "attn_mask=mask.unsqueeze(1).unsqueeze(1)"
    for layer in found.running:
        if isinstance(layer, nn.MultiheadAttention):
            masked = "key_padding_mask=~mask"
        elif isinstance(layer, (nn.TransformerEncoder, nn.TransformerEncoderLayer)):
            masked = "src_key_padding_mask=~mask"
        elif isinstance(layer, (nn.TransformerDecoder, nn.TransformerDecoderLayer)):
            masked = "tgt_key_padding_mask=~mask"
        elif type(layer).__module__.startswith("transformers."):
            masked = "attention_mask=mask"
    return (
        f"Pass the mask to the attention: `{masked}`, where `mask` is 1 at a sample's own "
        "positions."
    )


def _finding(now: Moment, batch: Padded, found: _Culprit) -> Finding:
    site = found.site
    cut = batch.longest
    said = "the step"
    if site is not None:
        said = site.quoted
    side = ""
    if batch.left:
        side = " on the left"
    fact = (
        f"{said} depends on the padding: a sample of {cut.own} positions gets other values when "
        f"longer samples pad it{side} to {cut.whole}"
    )
    return Finding(
        check="batch",
        stage=now.stage,
        fact=fact,
        remedy=_remedy(found, batch.left),
        subject=found.subject,
        subject_type=type(found.module).__name__,
        location=site.location if site is not None else None,
        expression=site.expression if site is not None else None,
        function=site.function if site is not None else None,
        epoch=now.epoch,
        step=now.step,
        rank=now.rank,
        certain=False,
    )


__all__ = ["Padding"]
