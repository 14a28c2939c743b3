"""A regression of images: the error is averaged, there is nothing to classify."""

import math

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
data = TensorDataset(nn.functional.avg_pool2d(images, 2), images)
train_set, test_set = torch.utils.data.random_split(data, [1500, 297])
training, testing = DataLoader(train_set, 100, shuffle=True), DataLoader(test_set, 100)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2)
)
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), 1e-3)


def train(epoch):
    epoch_loss = 0
    for batch in training:
        input, target = batch[0], batch[1]
        optimizer.zero_grad()
        loss = criterion(model(input), target)
        epoch_loss += loss.item()
        loss.backward()
        optimizer.step()
    print(f"Epoch {epoch}: {epoch_loss / len(training):.4f}")


def test():
    avg_psnr = 0
    with torch.no_grad():
        for batch in testing:
            input, target = batch[0], batch[1]
            mse = criterion(model(input), target)
            avg_psnr += 10 * math.log10(1 / mse.item())
    print(f"Avg. PSNR: {avg_psnr / len(testing):.4f} dB")


for epoch in range(2):
    train(epoch)
    test()
