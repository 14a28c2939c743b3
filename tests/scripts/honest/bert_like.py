"""Dicts as batches, keyword arguments, a scheduler a step, the loss from the model itself."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Texts(Dataset):
    def __init__(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(1, 30, (n, 9), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        ids = self.ids[i]
        return {"input_ids": ids, "attention_mask": ids > 3, "labels": (ids.sum() > 140).long()}


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classifier = nn.Linear(16, 2)

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        h = self.encoder(self.embed(input_ids), src_key_padding_mask=~attention_mask)
        logits = self.classifier(h.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


torch.manual_seed(0)
model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
train_dataloader = DataLoader(Texts(320, 1), 32, shuffle=True)
eval_dataloader = DataLoader(Texts(96, 2), 32)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20)
for epoch in range(2):
    model.train()
    for step, batch in enumerate(train_dataloader):
        outputs = model(**batch)
        outputs["loss"].backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    predictions, references = [], []
    for batch in eval_dataloader:
        with torch.no_grad():
            outputs = model(**batch)
        predictions.append(outputs["logits"].argmax(dim=-1))
        references.append(batch["labels"])
    print((torch.cat(predictions) == torch.cat(references)).float().mean().item())
