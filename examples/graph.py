"""Graphs: Zachary's karate club, in which four members tell on which side the others will be.

Needs torch-geometric. The loss looks at some of the nodes, and so does the matrix.
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch_geometric.datasets import KarateClub
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv

from lightning_evalguard import EvalGuard


class Sides(pl.LightningModule):
    def __init__(self, features, classes):
        super().__init__()
        self.first, self.second = GCNConv(features, 16), GCNConv(16, classes)

    def forward(self, graph):
        hidden = self.first(graph.x, graph.edge_index).relu()
        hidden = F.dropout(hidden, 0.5, training=self.training)
        return self.second(hidden, graph.edge_index)

    def training_step(self, graph, batch_idx):
        return F.cross_entropy(self(graph)[graph.train_mask], graph.y[graph.train_mask])

    def validation_step(self, graph, batch_idx):
        others = ~graph.train_mask
        return {"logits": self(graph)[others], "target": graph.y[others]}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2, weight_decay=5e-4)


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    club = KarateClub()
    # One graph serves both: what tells them apart is the mask, which the guard cannot know. And
    # that a mask makes the host wait for the device is no matter with 34 nodes on a CPU.
    guard = EvalGuard(data="ignore", sync="ignore")
    trainer = pl.Trainer(accelerator="cpu", max_epochs=60, callbacks=[guard], logger=False,
                         enable_checkpointing=False, enable_model_summary=False,
                         enable_progress_bar=False, log_every_n_steps=1)  # fmt: skip
    trainer.fit(
        Sides(club.num_features, club.num_classes), DataLoader(club), DataLoader(club)
    )
    print(guard.report.confusion["val"])
