"""Two models, a generator that draws samples without gradients, in train mode, while it trains."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
real = torch.randn(256, 16) * 0.5 + 1
loader = DataLoader(TensorDataset(real), 64, shuffle=True)
netG = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
netD = nn.Sequential(
    nn.Linear(16, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(32, 1),
    nn.Sigmoid(),
)  # fmt: skip
criterion = nn.BCELoss()
fixed_noise = torch.randn(64, 8)
optimizerD = torch.optim.Adam(netD.parameters(), 2e-4, betas=(0.5, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), 2e-4, betas=(0.5, 0.999))
for epoch in range(3):
    for i, (data,) in enumerate(loader):
        netD.zero_grad()
        label = torch.full((len(data),), 1.0)
        errD_real = criterion(netD(data).view(-1), label)
        errD_real.backward()
        fake = netG(torch.randn(len(data), 8))
        label.fill_(0.0)
        errD_fake = criterion(netD(fake.detach()).view(-1), label)
        errD_fake.backward()
        optimizerD.step()
        netG.zero_grad()
        label.fill_(1.0)
        errG = criterion(netD(fake).view(-1), label)
        errG.backward()
        optimizerG.step()
        if i % 2 == 0:
            with torch.no_grad():
                fake = netG(fixed_noise)
                score = netD(fake).mean()
print(float(score), fake.shape)
