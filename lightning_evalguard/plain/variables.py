"""How a script calls the loader that it evaluates: by the arguments of the running calls."""

from __future__ import annotations

import re
from types import FrameType
from typing import Literal, NamedTuple

from lightning_evalguard.instruments.source import owner_of, site_of

SetKind = Literal["train", "val", "test", ""]
_FRAMES = 8
_NAME = re.compile(r"[A-Za-z_][\w.]*(?!\w*\s*=[^=])")
_KEYWORD = re.compile(r"\b\w+\s*=(?!=)\s*")
_TRAIN = re.compile(r"train(?!ed|er)|(?<![a-z])trn|(?<![a-z])tr_|_tr(?![a-z])")
_TEST = re.compile(r"test")
_HELD_OUT = re.compile(r"(?<![a-z])(?:val|dev|eval|hold|held)|valid|_val|_dev")
_MAKES = re.compile(r"(?:Loader|Subset|Dataset|split)\(")  # a set of a part of another
_NO_SET = re.compile(r"model|net|epoch|loss|acc|step|batch|size|device|args|cfg|optim")


class LoaderName(NamedTuple):
    """A loader as the script has it.

    Attributes:
        name: An identifier; empty where none is known.
        says: For what it stands.
    """

    name: str = ""
    says: SetKind = ""


def name_of_loader(frame: FrameType | None) -> LoaderName:
    """What the outermost running call says of the loader that the innermost reads."""
    texts: list[str] = []
    while frame is not None and len(texts) < _FRAMES:
        if owner_of(frame.f_code.co_filename) == "user":
            texts.append(site_of(frame).expression)
        frame = frame.f_back
    for text in reversed(texts):
        said = name_in(text)
        if said.says:
            return said
    return LoaderName()


def name_in(text: str) -> LoaderName:
    """What the arguments of a call, or an iterated expression, say.

    Example:
        >>> name_in("test(model, train_loader, train=False)")
        LoaderName(name='train_loader', says='train')
        >>> name_in("evaluate(trained_model, data.val_loader)").says
        'val'
        >>> name_in("main()").says, name_in("compare(train_set, test_set)").says
        ('', '')
    """
    _, opened, arguments = text.partition("(")
    if not opened:
        arguments = text
    found: dict[SetKind, str] = {}
    for name in _NAME.findall(_KEYWORD.sub("", arguments)):
        says = _said_by(name.lower())
        if says:
            found.setdefault(says, name)
    if _MAKES.search(arguments) or (len(found) > 1 and "train" in found):
        return LoaderName()
    order: tuple[SetKind, ...] = ("train", "test", "val")
    for says in order:
        if says in found:
            return LoaderName(found[says], says)
    return LoaderName()


def _said_by(name: str) -> SetKind:
    last = name.rpartition(".")[2]
    if _NO_SET.search(last):
        return ""
    if _TRAIN.search(last):
        return "train"
    if _TEST.search(last):
        return "test"
    if _HELD_OUT.search(last):
        return "val"
    return ""


__all__ = ["LoaderName", "name_in", "name_of_loader"]
