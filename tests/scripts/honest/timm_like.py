"""Mixed precision, accumulated gradients, an average of the weights evaluated beside the model."""

import copy
from collections import OrderedDict

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class ModelEma(nn.Module):
    def __init__(self, model, decay=0.9):
        super().__init__()
        self.module = copy.deepcopy(model)
        self.module.eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model):
        for ema_v, model_v in zip(self.module.state_dict().values(), model.state_dict().values()):
            ema_v.copy_(self.decay * ema_v + (1 - self.decay) * model_v)


class DropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * torch.empty(len(x), 1).bernoulli_(0.9) / 0.9


class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.mlp, self.norm, self.drop_path = nn.Linear(n, n), nn.BatchNorm1d(n), DropPath()

    def forward(self, x):
        return x + self.drop_path(torch.relu(self.norm(self.mlp(x))))


def train_one_epoch(epoch, model, loader, optimizer, loss_fn, model_ema, scaler, accum=2):
    model.train()
    for batch_idx, (input, target) in enumerate(loader):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_fn(model(input), target) / accum
        scaler.scale(loss).backward()
        if (batch_idx + 1) % accum == 0:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            model_ema.update(model)


def validate(model, loader, loss_fn):
    model.eval()
    total, correct = torch.zeros(()), torch.zeros(())
    with torch.inference_mode():
        for input, target in loader:
            with torch.autocast("cpu", torch.bfloat16):
                output = model(input)
                loss = loss_fn(output, target)
            total += loss * len(target)
            correct += (output.argmax(dim=1) == target).sum()
    n = len(loader.dataset)
    return OrderedDict(loss=total.item() / n, top1=correct.item() / n)


torch.manual_seed(42)
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(labels))
train_set, eval_set = torch.utils.data.random_split(data, [1500, 297])
loader_train = DataLoader(train_set, 100, shuffle=True, drop_last=True)
loader_eval = DataLoader(eval_set, 100)
model = nn.Sequential(nn.Linear(64, 32), Block(32), Block(32), nn.Dropout(0.1), nn.Linear(32, 10))
model_ema = ModelEma(model)
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
scaler = torch.amp.GradScaler("cpu", enabled=False)
for epoch in range(2):
    train_one_epoch(epoch, model, loader_train, optimizer, loss_fn, model_ema, scaler)
    print(validate(model, loader_eval, loss_fn), validate(model_ema.module, loader_eval, loss_fn))
