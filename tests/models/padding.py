"""Evaluations in which a sample's answer depends on how much its batch pads it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from models.program import BATCH, CLASSES, FEATURES, SAMPLES, Classifier, bug, near_miss

WORDS = 20


def sentences(seed: int) -> list[tuple[Tensor, int]]:
    """Token ids from 1 on, of 3 to 12 words; 0 is the padding."""
    made = torch.Generator().manual_seed(seed)
    sizes = torch.randint(3, 13, (SAMPLES,), generator=made).tolist()
    sizes[0], sizes[1] = 4, 12
    return [(torch.randint(1, WORDS, (n,), generator=made), n % CLASSES) for n in sizes]


def collated(samples: list[tuple[Tensor, int]]) -> Any:
    """Ids padded on the right, their mask, lengths and classes."""
    ids = pad_sequence([x for x, _ in samples], batch_first=True)
    lengths = torch.tensor([len(x) for x, _ in samples])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids, mask, lengths, torch.tensor([y for _, y in samples])


def collated_left(samples: list[tuple[Tensor, int]]) -> Any:
    """The same, padded on the left."""
    ids = pad_sequence([x.flip(0) for x, _ in samples], batch_first=True).flip(1)
    lengths = torch.tensor([len(x) for x, _ in samples])
    mask = torch.arange(ids.shape[1]).flip(0) < lengths[:, None]
    return ids, mask, lengths, torch.tensor([y for _, y in samples])


class Tokens(Classifier):
    """Classifies sentences by what `pooled` makes of their embedded words."""

    collate = staticmethod(collated)

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, FEATURES)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return (x * mask[..., None]).sum(1) / lengths[:, None]

    def forward(self, batch: Any) -> Tensor:
        ids, mask, lengths, _ = batch
        return self.net(self.pooled(self.embedding(ids), mask, lengths))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch), batch[-1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch)
        self.log("val_loss", F.cross_entropy(logits, batch[-1]))
        return {"preds": logits}

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch)

    def train_dataloader(self) -> Any:
        return DataLoader(sentences(1), batch_size=BATCH, collate_fn=self.collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(sentences(2), batch_size=BATCH, collate_fn=self.collate)  # type: ignore[arg-type]


@bug("batch", certain=False)
class MeanOverThePadding(Tokens):
    """``x.mean(1)``: the longer the neighbour, the smaller the mean."""

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return x.mean(1)  # <- here


@near_miss
class MeanOverTheWords(Tokens):
    """The sum over the mask, by the number of words."""


@near_miss
class MeanCorrectedByTheLengths(Tokens):
    """The padded embeddings are zeros, and the mean is taken back to the number of words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, FEATURES, padding_idx=0)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return x.mean(1) * (x.shape[1] / lengths[:, None])


@bug("batch", certain=False)
class MaximumOverThePadding(Tokens):
    """``x.amax(1)`` over zeros that stand for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, FEATURES, padding_idx=0)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return x.amax(1)  # <- here


@near_miss
class MaximumOverTheWords(Tokens):
    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return x.masked_fill(~mask[..., None], float("-inf")).amax(1)


@bug("batch", "attention", certain=False)
class AttentionToThePadding(Tokens):
    """No ``key_padding_mask``: words attend to what is none."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(FEATURES, 2, batch_first=True)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)  # <- here
        return super().pooled(mixed, mask, lengths)


@near_miss
class AttentionToTheWords(AttentionToThePadding):
    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)
        return Tokens.pooled(self, mixed, mask, lengths)


@bug("batch", certain=False)
class SoftmaxOverThePadding(Tokens):
    """Attention pooling: a share of the weights goes to the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(FEATURES, 1)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        weights = self.score(x).softmax(1)  # <- here
        return (weights * x * mask[..., None]).sum(1)


@near_miss
class SoftmaxOverTheWords(SoftmaxOverThePadding):
    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        scores = self.score(x).masked_fill(~mask[..., None], float("-inf"))
        return (scores.softmax(1) * x).sum(1)


@bug("batch", "norm", certain=False)
class NormOverThePadding(Tokens):
    """`InstanceNorm1d` over time: mean and spread count the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(FEATURES)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        normed = self.norm(x.transpose(1, 2))  # <- here
        return super().pooled(normed.transpose(1, 2), mask, lengths)


@near_miss
class NormOfEachWord(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(FEATURES)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return super().pooled(self.norm(x), mask, lengths)


@bug("batch", "gru", certain=False)
class BackwardsThroughThePadding(Tokens):
    """A bidirectional GRU that is not packed reads the padding first."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, FEATURES // 2, batch_first=True, bidirectional=True)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        out, _ = self.gru(x)  # <- here
        return super().pooled(out, mask, lengths)


@near_miss
class BackwardsThroughTheWords(BackwardsThroughThePadding):
    """Packed: it begins with the last word."""

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        out, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return Tokens.pooled(self, out, mask, lengths)


@near_miss
class ForwardsThroughTheWords(BackwardsThroughThePadding):
    """One direction, read at each sample's own last word."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, FEATURES, batch_first=True)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        out, _ = self.gru(x)
        return out[torch.arange(len(out)), lengths - 1]


@bug("batch", "lstm", certain=False)
class LastStateAfterThePadding(Tokens):
    """``h[-1]`` of sequences that are not packed: the state after the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, FEATURES, batch_first=True)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x)  # <- here
        return h[-1]


@near_miss
class LastStateOfTheWords(LastStateAfterThePadding):
    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        _, (h, _) = self.lstm(packed)
        return h[-1]


@bug("batch", certain=False)
class LastPositionIsPadding(Tokens):
    """``out[:, -1]`` with padding on the right."""

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return x.cumsum(1)[:, -1]  # <- here


@near_miss
class LastPositionIsTheLastWord(Tokens):
    """Padded on the left, the last position is a word."""

    collate = staticmethod(collated_left)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return x[:, -1]


@bug("batch", "places", certain=False)
class PositionsCountedOverThePadding(Tokens):
    """Padded on the left, and the first word is told that it is the ninth."""

    collate = staticmethod(collated_left)

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(32, FEATURES)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        places = self.places(torch.arange(x.shape[1]))  # <- here
        return super().pooled(F.gelu(x + places), mask, lengths)


@near_miss
class PositionsCountedFromTheMask(PositionsCountedOverThePadding):
    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        places = self.places((mask.cumsum(1) - 1).clamp(min=0))
        return Tokens.pooled(self, F.gelu(x + places), mask, lengths)


@bug("batch", certain=False)
class MeanOverFramesWithoutAMask(Tokens):
    """Nothing but frames in the batch, channels first; the collate function alone knows."""

    @staticmethod
    def collate(samples: list[tuple[Tensor, int]]) -> Any:
        x = [F.one_hot(ids % FEATURES, FEATURES).float() for ids, _ in samples]
        frames = pad_sequence(x, batch_first=True).transpose(1, 2)
        return frames, torch.tensor([y for _, y in samples])

    def forward(self, batch: Any) -> Tensor:
        return self.net(batch[0].mean(2))  # <- here


@near_miss
class SumOverFramesWithoutAMask(MeanOverFramesWithoutAMask):
    """Zeros add nothing to a sum."""

    def forward(self, batch: Any) -> Tensor:
        return self.net(batch[0].sum(2))


@bug("batch", certain=False)
class MeanBehindAConvolution(Tokens):
    """A kernel looks over the end, which is a matter of its width; the mean counts all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(FEATURES, FEATURES, 3, padding=1)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).mean(2)  # <- here


@near_miss
class MaskedMeanBehindConvolutions(Tokens):
    """The last words depend on whether padding follows, not on how much: a note."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(FEATURES, FEATURES, 3, padding=1)

    def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return super().pooled(
            self.conv(x.transpose(1, 2)).transpose(1, 2), mask, lengths
        )


@near_miss
class WordByWord(Tokens):
    """A tag for each word, flattened with the padding's, which the loss ignores."""

    def forward(self, batch: Any) -> Tensor:
        return self.net(self.embedding(batch[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        target = batch[0].remainder(CLASSES).masked_fill(~batch[1], -100)
        return F.cross_entropy(self(batch).flatten(0, 1), target.flatten())

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.training_step(batch, batch_idx))
