"""Tokens: the kind of each character of a line of Python: name, number, string, comment, ...

Lines have other lengths: what is padded has the target -100 and is in no score, and the guard
checks that a line gets the same answers whatever stands beside it in the batch.
"""

import io
import json.decoder as _json
import tokenize
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lightning_evalguard import ConfusionMetrics, EvalGuard

KINDS = {"NAME": 1, "NUMBER": 2, "STRING": 3, "COMMENT": 4, "OP": 5}
PAD = -100


def lines_of(name):
    code = (Path(_json.__file__).parent.parent / f"{name}.py").read_text(
        encoding="utf-8"
    )
    listed = code.splitlines()
    kinds = [[0] * len(line) for line in listed]
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        kind = KINDS.get(tokenize.tok_name[token.type])
        (row, start), (end_row, end) = token.start, token.end
        if kind is not None and row == end_row:
            kinds[row - 1][start:end] = [kind] * (end - start)
    long = [i for i, line in enumerate(listed) if 20 < len(line) < 80 and any(kinds[i])]
    unique = {listed[i]: i for i in long}.values()
    letters = [torch.tensor([min(ord(c), 127) for c in listed[i]]) for i in unique]
    return list(zip(letters, [torch.tensor(kinds[i]) for i in unique], strict=True))


def collate(samples):
    letters, kinds = zip(*samples, strict=True)
    padded = pad_sequence(letters, batch_first=True)
    return padded, pad_sequence(kinds, batch_first=True, padding_value=PAD)


class Tagger(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(128, 32, padding_idx=0)
        self.around = nn.Conv1d(32, 128, 15, padding=7)
        self.kind = nn.Linear(128, 1 + len(KINDS))

    def forward(self, letters):
        seen = self.around(self.letters(letters).transpose(1, 2))
        return self.kind(seen.relu().transpose(1, 2)).transpose(1, 2)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], ignore_index=PAD)

    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch[0]), "target": batch[1]}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    guard = EvalGuard(
        metrics=ConfusionMetrics(class_names=["blank", *map(str.lower, KINDS)])
    )
    trainer = pl.Trainer(accelerator="cpu", max_epochs=3, callbacks=[guard], logger=False,
                         enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    train, val = lines_of("argparse") + lines_of("inspect"), lines_of("zipfile")
    trainer.fit(Tagger(), DataLoader(train, 32, shuffle=True, collate_fn=collate),
                DataLoader(val, 64, collate_fn=collate))  # fmt: skip
    print(guard.report.confusion["val"])
