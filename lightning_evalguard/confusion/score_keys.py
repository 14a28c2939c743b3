"""Does a logged key speak of a score of a classification? In any spelling."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*")
_SEPARATED = re.compile(r"[^a-z0-9]+")
_SCORE = re.compile(
    r"m?(acc|accuracy|iou|jaccard|dice)\d*|top\d|f1\w*|f_?beta|precision|recall|bacc|auroc|q?wk|"
    r"kappa|mcc|miou\w*|specificity|sensitivity"
)
_OF_RANKS = re.compile(
    r"(recall|precision|f1)@\d+", re.IGNORECASE
)  # among the k best of a list


def names_score(key: str) -> bool:
    """Whether any word of a key is the name of such a score.

    Example:
        >>> [names_score(key) for key in ("val_mIoU", "valAcc", "acc@1", "val_recall@10")]
        [True, True, True, False]
    """
    key = _OF_RANKS.sub("", key)
    words = {word.lower() for word in _WORD.findall(key)}
    words.update(_SEPARATED.split(key.lower()))
    return any(_SCORE.fullmatch(word) for word in words)
