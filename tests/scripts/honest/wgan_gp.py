"""A gradient penalty, a critic that trains more often, frozen while the generator trains."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(400, 8) + 2), 40, shuffle=True)
G = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
D = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(), nn.Dropout(0.1), nn.Linear(16, 1))
opt_g, opt_d = (torch.optim.Adam(m.parameters(), 1e-3) for m in (G, D))


def penalty(real, fake):
    t = torch.rand(len(real), 1)
    mixed = (t * real + (1 - t) * fake).requires_grad_(True)
    (grad,) = torch.autograd.grad(D(mixed).sum(), mixed, create_graph=True)
    return ((grad.norm(2, dim=1) - 1) ** 2).mean()


for epoch in range(2):
    for i, (real,) in enumerate(loader):
        for p in D.parameters():
            p.requires_grad_(True)
        with torch.no_grad():
            fake = G(torch.randn(len(real), 4))
        loss_d = D(fake).mean() - D(real).mean() + 10 * penalty(real, fake)
        opt_d.zero_grad()
        loss_d.backward()
        opt_d.step()
        if i % 3 == 0:
            for p in D.parameters():
                p.requires_grad_(False)
            opt_g.zero_grad()
            (-D(G(torch.randn(40, 4))).mean()).backward()
            opt_g.step()
    G.eval()
    with torch.no_grad():
        samples = torch.cat([G(torch.randn(10, 4)) for _ in range(3)])
    G.train()
    print(float(samples.mean()))
