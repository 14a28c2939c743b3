"""Which way is better? What the name of a score says, and what its value says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Best = Literal["min", "max"]


@dataclass(frozen=True)
class Direction:
    """Which of two scores is the better one, and how that is known.

    Attributes:
        mode: ``"max"`` where higher is better, ``"min"`` where lower is.
        why: How it is known, as the end of a sentence.
    """

    mode: Best
    why: str


_HIGHER = """
    acc accuracy bacc auc auroc aucroc rocauc auprc prauc aucpr ap map mar precision recall
    sensitivity specificity f1 f1score fscore fbeta f2 dice iou miou giou jaccard mcc matthews
    kappa qwk bleu sacrebleu rouge rougel rougelsum meteor cider bertscore chrf psnr ssim msssim
    r2 r2score pearson pearsonr spearman spearmanr kendall kendalltau corr correlation
    concordance cindex ndcg dcg mrr hits hit
    reward rewards return returns likelihood loglikelihood nmi ari purity silhouette pesq stoi sdr
    sisdr sisnr snr tpr tnr ppv npv top1 top3 top5 top10 winrate qualityindex
"""
_LOWER = """
    loss losses error errors err mse rmse nrmse mae msle rmsle mape smape wmape wape mase nll bce
    ce xent crossentropy ppl perplexity wer cer eer fid kid fad fvd lpips brier ece mce hinge huber
    kl kld kldiv divergence hausdorff hd95 assd chamfer emd wasserstein fpr fnr fdr regret crps
    logloss bpc bpb bpd epe ade fde aic bic deviance misclassification pinball
"""
_HIGHER_PHRASES = """
    average_precision roc_auc explained_variance log_likelihood true_positive true_positives
    true_negative true_negatives hit_rate win_rate success_rate exact_match negative_predictive
    positive_predictive
"""
_LOWER_PHRASES = """
    cross_entropy negative_log_likelihood neg_log_likelihood neg_log_lik log_loss false_positive
    false_positives false_negative false_negatives false_alarm false_alarms false_discovery
    miss_rate edit_distance hamming_distance bits_per error_rate
"""
# With one of these a name says something else than the score in it: how it spreads or changes,
# its opposite, or a score that is meant to be bad.
_UNSAID = """
    neg negative minus negated inv inverse inverted one non not no without complement reciprocal
    std stdev var variance gap diff difference delta drop change ratio scale weight weights count
    num number time threshold thresh slope improvement degradation reduction increase decrease gain
    code codes codebook vq cluster adv adversarial adversary attack attacker attacked disc
    discriminator random shuffled chance baseline leak leakage mia membership forgetting noise
    noisy target limit budget patience counter vs versus
"""
_STAGES = "validation valid val test testing training train dev eval evaluation"

HIGHER = frozenset(_HIGHER.split())
LOWER = frozenset(_LOWER.split())
_PHRASES: dict[str, Best] = {
    **dict.fromkeys(_HIGHER_PHRASES.split(), "max"),
    **dict.fromkeys(_LOWER_PHRASES.split(), "min"),
}
_DECIDING = frozenset(("loss", "losses", "error", "errors", "err"))
UNSAID = frozenset(_UNSAID.split())
STAGES = tuple(_STAGES.split())
_PREFIXES = (*STAGES, "mean", "avg", "average", "best", "macro", "micro", "total")
_PARTS = re.compile(r"[A-Za-z0-9]+")
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z]+")
_LOADER = re.compile(r"/dataloader_idx_\d+$")


def words(key: str) -> list[str]:
    """The words of a score's name, in lower case.

    Example:
        >>> words("val/mIoU"), words("validAcc"), words("valloss/dataloader_idx_1")
        (['val', 'miou'], ['valid', 'acc'], ['val', 'loss'])
    """
    return [
        word for part in _PARTS.findall(_LOADER.sub("", key)) for word in _split(part)
    ]


def _split(part: str) -> Iterator[str]:
    low = part.lower()
    if _known(low) or low in STAGES:
        yield low
        return
    for prefix in _PREFIXES:
        rest = low.removeprefix(prefix)
        if rest != low and _known(rest):
            yield from (prefix, rest)
            return
    for piece in _CAMEL.findall(part):
        yield piece.lower()


def _known(word: str) -> bool:
    return _meaning(word) is not None or word in UNSAID


def _meaning(word: str) -> Best | None:
    for form in (word, word.rstrip("0123456789")):
        if form in HIGHER:
            return "max"
        if form in LOWER:
            return "min"
    return None


def by_name(key: str) -> Direction | None:
    """What the name says; None where it says nothing, or two things.

    Example:
        >>> by_name("val_acc").mode, by_name("val/dice_loss").mode, by_name("val_FNR").mode
        ('max', 'min', 'min')
        >>> by_name("val_score"), by_name("neg_loss"), by_name("acc_std"), by_name("epoch")
        (None, None, None, None)
    """
    said = words(key)
    phrase = _phrase(said)
    rest = [word for word in said if phrase is None or word not in phrase.split("_")]
    if key.lstrip().startswith(("-", "1-")) or UNSAID.intersection(rest):
        return None
    if phrase is not None:
        return _named(phrase, _PHRASES[phrase])
    meant: dict[str, Best] = {}
    for word in said:
        one = _meaning(word)
        if one is not None:
            meant[word] = one
    if not meant:
        return None
    last = list(meant)[-1]
    # "dice_loss" and "precision_error" are a loss and an error; "loss_at_best_acc" is unclear
    if len(set(meant.values())) > 1 and not (last in _DECIDING and last == said[-1]):
        return None
    return _named(last, meant[last])


def _phrase(said: list[str]) -> str | None:
    """The longest phrase in a name."""
    text = f"_{'_'.join(said)}_"
    inside = [phrase for phrase in _PHRASES if f"_{phrase}_" in text]
    return max(inside, key=len, default=None)


def _named(word: str, mode: Best) -> Direction:
    better = "lower"
    if mode == "max":
        better = "higher"
    return Direction(mode, f"its name says `{word}`, of which {better} is better")


def is_of_test(key: str) -> bool:
    """Whether a score's name says that it is the test set's.

    Example:
        >>> is_of_test("test_acc"), is_of_test("metrics/test/f1"), is_of_test("latest_acc")
        (True, True, False)
    """
    said = words(key)
    return "test" in said and not {"val", "valid", "validation"}.intersection(said)


# scores of the matrix of which lower is better, or that say nothing about the model
_NO_QUALITY = frozenset(("majority_baseline",))


def by_matrix(value: float, scores: Mapping[str, float]) -> Direction | None:
    """What a value is, by the scores that follow from the confusion matrix.

    Args:
        value: What is logged.
        scores: The matrix's scores, each of which is better where it is higher.

    Returns:
        None where it is none of them, or a score and the error of another one at once.

    Example:
        >>> by_matrix(0.875, {"accuracy": 0.875, "kappa": 0.81}).why
        'its value, 0.8750, is the accuracy'
        >>> by_matrix(12.5, {"accuracy": 0.875}).why
        'its value, 12.5000, is 100 x (1 - accuracy)'
    """
    directions = dict(_matches(value, scores))
    if len({direction.mode for direction in directions.values()}) != 1:
        return None
    return next(iter(directions.values()))


def _matches(
    value: float, scores: Mapping[str, float]
) -> Iterator[tuple[str, Direction]]:
    for name, score in scores.items():
        if "/" in name or name in _NO_QUALITY or not math.isfinite(score):
            continue
        for mode, text, expected in (
            ("max", f"the {name}", score),
            ("max", f"100 x {name}", 100 * score),
            ("min", f"1 - {name}", 1 - score),
            ("min", f"100 x (1 - {name})", 100 * (1 - score)),
            ("min", f"-{name}", -score),
        ):
            if (
                is_same(value, expected)
                and not is_same(score, 0.0)
                and not is_same(score, 1.0)
            ):
                why = f"its value, {value:.4f}, is {text}"
                yield text, Direction("max" if mode == "max" else "min", why)


def is_same(a: float, b: float) -> bool:
    """Whether two values are one, but for the last bits of float32."""
    return math.isclose(a, b, rel_tol=2e-6, abs_tol=2e-7)
