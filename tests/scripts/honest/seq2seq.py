"""An encoder and a decoder apart, teacher forcing, greedy decoding step by step in eval mode."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
random.seed(0)
pairs = torch.randint(2, 12, (300, 5))
train, test = TensorDataset(pairs[:240]), TensorDataset(pairs[240:])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(12, 16), nn.Dropout(0.1)
        self.gru = nn.GRU(16, 16, batch_first=True)

    def forward(self, x):
        return self.gru(self.dropout(self.embedding(x)))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(12, 16), nn.Dropout(0.1)
        self.gru, self.out = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 12)

    def forward(self, token, hidden):
        output, hidden = self.gru(self.dropout(self.embedding(token)), hidden)
        return self.out(output[:, -1]), hidden


encoder, decoder = Encoder(), Decoder()
optimizers = [torch.optim.Adam(m.parameters(), 1e-2) for m in (encoder, decoder)]
criterion = nn.CrossEntropyLoss()


def train_epoch():
    for (batch,) in DataLoader(train, 40, shuffle=True):
        for optimizer in optimizers:
            optimizer.zero_grad()
        _, hidden = encoder(batch)
        token, loss = torch.zeros(len(batch), 1, dtype=torch.long), 0
        for i in range(5):
            logits, hidden = decoder(token, hidden)
            loss = loss + criterion(logits, batch[:, i])
            forced = random.random() < 0.5
            token = batch[:, i : i + 1] if forced else logits.argmax(1, keepdim=True).detach()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def evaluate():
    encoder.eval()
    decoder.eval()
    right = 0
    with torch.no_grad():
        for (batch,) in DataLoader(test, 20):
            _, hidden = encoder(batch)
            token, decoded = torch.zeros(len(batch), 1, dtype=torch.long), []
            for _ in range(5):
                logits, hidden = decoder(token, hidden)
                token = logits.argmax(1, keepdim=True)
                decoded.append(token)
            right += (torch.cat(decoded, 1) == batch).all(1).sum()
    encoder.train()
    decoder.train()
    return int(right)


for _ in range(2):
    train_epoch()
    print(evaluate())
