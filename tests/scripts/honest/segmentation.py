"""Masks, a dice that is computed by hand, evaluation every half epoch within training."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
images = torch.rand(120, 1, 12, 12)
masks = (F.avg_pool2d(images, 3, 1, 1) > 0.5).float().squeeze(1)
train_set, val_set = random_split(TensorDataset(images, masks), [96, 24])
train_loader = DataLoader(train_set, 12, shuffle=True)
val_loader = DataLoader(val_set, 6, drop_last=True)
model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                      nn.Conv2d(8, 1, 3, padding=1))  # fmt: skip
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)


def dice(pred, true):
    inter = 2 * (pred * true).sum((-1, -2))
    return ((inter + 1e-6) / (pred.sum((-1, -2)) + true.sum((-1, -2)) + 1e-6)).mean()


@torch.inference_mode()
def evaluate(net, dataloader):
    net.eval()
    score = 0
    for image, mask_true in dataloader:
        mask_pred = net(image).squeeze(1)
        score += dice((F.sigmoid(mask_pred) > 0.5).float(), mask_true)
    net.train()
    return score / len(dataloader)


step = 0
for epoch in range(2):
    model.train()
    for image, true in train_loader:
        loss = criterion(model(image).squeeze(1), true)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 4 == 0:
            print("dice", float(evaluate(model, val_loader)))
