"""An iterator of its own, a development set every few batches in the middle of an epoch."""

import torch
from torch import nn


class Batches:
    def __init__(self, x, y, size):
        self.x, self.y, self.size = x, y, size

    def init_epoch(self):
        self.order = torch.randperm(len(self.x))

    def __iter__(self):
        for i in range(0, len(self.x), self.size):
            yield self.x[self.order[i : i + self.size]], self.y[self.order[i : i + self.size]]


torch.manual_seed(0)
x = torch.randint(0, 50, (600, 7))
y = (x[:, 0] + x[:, 1] > 49).long() + (x[:, 2] > 40).long()
train_iter, dev_iter = Batches(x[:500], y[:500], 50), Batches(x[500:], y[500:], 40)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.rnn = nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))

    def forward(self, x):
        return self.out(self.rnn(self.embed(x))[0][:, -1])


model, criterion = Classifier(), nn.CrossEntropyLoss()
opt = torch.optim.Adam(model.parameters(), 1e-2)
iterations, best_dev_acc = 0, -1
for _ in range(3):
    train_iter.init_epoch()
    n_correct = n_total = 0
    for batch, label in train_iter:
        model.train()
        opt.zero_grad()
        iterations += 1
        answer = model(batch)
        n_correct += (torch.max(answer, 1)[1] == label).sum()
        n_total += len(label)
        loss = criterion(answer, label)
        loss.backward()
        opt.step()
        if iterations % 5 == 0:
            model.eval()
            dev_iter.init_epoch()
            n_dev_correct, dev_loss = 0, 0
            with torch.no_grad():
                for dev_batch, dev_label in dev_iter:
                    answer = model(dev_batch)
                    n_dev_correct += (torch.max(answer, 1)[1] == dev_label).sum().item()
                    dev_loss = criterion(answer, dev_label)
            best_dev_acc = max(best_dev_acc, n_dev_correct / 100)
print(best_dev_acc, 100 * float(n_correct) / n_total)
