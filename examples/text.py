"""Text: which package of the standard library does a line of code come from?

Lines of one file belong together, so the split is by file, and the guard is told so.
"""

import json.decoder as _json  # any file of the standard library shows where it lies
import random
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_evalguard import ConfusionMetrics, EvalGuard

PACKAGES = ["asyncio", "email", "unittest", "xml"]
LIBRARY = Path(_json.__file__).parent.parent
BUCKETS = 1024


class Lines(Dataset):
    def __init__(self, files):
        self.rows, self.packages, self.file = [], [], []
        for path in files:
            code = path.read_text(encoding="utf-8").splitlines()
            for line in sorted(
                {line.strip() for line in code if len(line.strip()) > 40}
            ):
                self.rows.append(counts(line))
                self.packages.append(PACKAGES.index(path.relative_to(LIBRARY).parts[0]))
                self.file.append(str(path))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index], self.packages[index]


def counts(line):
    """How often each group of three letters occurs, by its hash."""
    codes = torch.tensor([ord(letter) for letter in line])
    hashes = (codes[:-2] + codes[1:-1] * 31 + codes[2:] * 961) % BUCKETS
    return torch.bincount(hashes, minlength=BUCKETS).float().log1p()


class Reader(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.3), nn.Linear(BUCKETS, len(PACKAGES)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        return {"logits": self.net(batch[0]), "target": batch[1]}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 3e-3)


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    paths = sorted(p for package in PACKAGES for p in (LIBRARY / package).glob("*.py"))
    random.Random(0).shuffle(paths)
    cut = len(paths) * 3 // 4
    train, val = Lines(paths[:cut]), Lines(paths[cut:])
    guard = EvalGuard(groups="file", metrics=ConfusionMetrics(class_names=PACKAGES))
    trainer = pl.Trainer(accelerator="cpu", max_epochs=4, callbacks=[guard], logger=False,
                         enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Reader(), DataLoader(train, 64, shuffle=True), DataLoader(val, 256))
    print(guard.report.confusion["val"])
