"""Outputs that depend on the padding. Each lie with its honest twin."""

import functools
from lies.common import *
from lies.common import fitted as fitted_in_epochs
from torch.nn.utils.rnn import pad_sequence, pack_padded_sequence, pad_packed_sequence

fitted = functools.partial(fitted_in_epochs, epochs=1)

g = torch.Generator().manual_seed(3)


class Seqs(Dataset):
    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.items = []
        for _ in range(n):
            l = int(torch.randint(4, 20, (1,), generator=g))
            self.items.append(
                (
                    torch.randint(1, 30, (l,), generator=g),
                    int(torch.randint(0, 3, (1,), generator=g)),
                )
            )

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate(b):
    x = pad_sequence([t for t, _ in b], batch_first=True)
    return {
        "ids": x,
        "mask": (x != 0),
        "lengths": torch.tensor([len(t) for t, _ in b]),
        "y": torch.tensor([y for _, y in b]),
    }


def collate_tuple(b):
    d = collate(b)
    return d["ids"], d["lengths"], d["y"]


def collate_left(b):
    m = max(len(t) for t, _ in b)
    x = torch.stack([F.pad(t, (m - len(t), 0)) for t, _ in b])
    return {
        "ids": x,
        "mask": (x != 0),
        "lengths": torch.tensor([len(t) for t, _ in b]),
        "y": torch.tensor([y for _, y in b]),
    }


class S(pl.LightningModule):
    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed
        self.emb = nn.Embedding(30, 16, padding_idx=0)
        self.head = nn.Linear(16, 3)
        self.make()

    def make(self):
        pass

    def forward(self, b):
        return self.head(self.pool(self.emb(b["ids"]), b))

    def training_step(self, b, i):
        return F.cross_entropy(self(b), b["y"])

    def validation_step(self, b, i):
        self.log("val_loss", F.cross_entropy(self(b), b["y"]), batch_size=len(b["y"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def seq(cls=None, *, c=collate):
    def add(cls):
        def f(fixed):
            return fitted(
                cls(fixed),
                train=DataLoader(Seqs(200, 0), 16, shuffle=True, collate_fn=c),
                val=DataLoader(Seqs(80, 1), 16, collate_fn=c),
            )

        f.__name__ = cls.__name__
        return lie(f)

    return add(cls) if cls else add


@seq
class mean_over_padding(S):
    def pool(self, h, b):
        if not self.fixed:
            return h.mean(1)
        m = b["mask"][..., None].float()
        return (h * m).sum(1) / m.sum(1)


@seq
class mean_over_max_length(S):
    def pool(self, h, b):
        m = b["mask"][..., None].float()
        return (h * m).sum(1) / (m.sum(1) if self.fixed else h.shape[1])


@seq
class max_over_padding(S):
    def pool(self, h, b):
        return (
            (h.masked_fill(~b["mask"][..., None], -1e9) if self.fixed else h)
            .max(1)
            .values
        )


@seq
class attention_pooling(S):
    def make(self):
        self.q = nn.Linear(16, 1)

    def pool(self, h, b):
        w = self.q(h).squeeze(-1)
        if self.fixed:
            w = w.masked_fill(~b["mask"], float("-inf"))
        return (w.softmax(1)[..., None] * h).sum(1)


@seq
class transformer_without_mask(S):
    def make(self):
        self.t = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0),
            1,
            enable_nested_tensor=False,
        )

    def pool(self, h, b):
        return self.t(h, src_key_padding_mask=~b["mask"] if self.fixed else None)[:, 0]


@seq
class sdpa_without_mask(S):
    def pool(self, h, b):
        m = b["mask"][:, None, :] if self.fixed else None
        return F.scaled_dot_product_attention(h, h, h, attn_mask=m)[:, 0]


@seq
class batchnorm_over_padding(S):
    def make(self):
        self.bn = nn.BatchNorm1d(16)

    def pool(self, h, b):
        m = b["mask"][..., None].float()
        if self.fixed:
            h = self.bn(h.transpose(1, 2)).transpose(1, 2)
        else:
            h = (h - h.mean((1,), keepdim=True)) / (h.std((1,), keepdim=True) + 1e-3)
        return (h * m).sum(1) / m.sum(1)


@seq
class instance_norm_over_padding(S):
    def make(self):
        self.n = nn.InstanceNorm1d(16)
        self.ln = nn.LayerNorm(16)

    def pool(self, h, b):
        m = b["mask"][..., None].float()
        h = self.ln(h) if self.fixed else self.n(h.transpose(1, 2)).transpose(1, 2)
        return (h * m).sum(1) / m.sum(1)


@seq
class bidirectional_rnn(S):
    def make(self):
        self.r = nn.GRU(16, 8, batch_first=True, bidirectional=True)

    def pool(self, h, b):
        if self.fixed:
            _, s = self.r(
                pack_padded_sequence(
                    h, b["lengths"], batch_first=True, enforce_sorted=False
                )
            )
        else:
            _, s = self.r(h)
        return torch.cat([s[0], s[1]], 1)


@seq
class last_output_of_lstm(S):
    def make(self):
        self.r = nn.LSTM(16, 16, batch_first=True)

    def pool(self, h, b):
        o, _ = self.r(h)
        return o[torch.arange(len(o)), b["lengths"] - 1] if self.fixed else o[:, -1]


@seq
class reversed_by_flip(S):
    def make(self):
        self.r = nn.LSTM(16, 16, batch_first=True)

    def pool(self, h, b):
        if self.fixed:
            idx = (
                b["lengths"][:, None] - 1 - torch.arange(h.shape[1])[None]
            ) % h.shape[1]
            h = h.gather(1, idx[..., None].expand_as(h))
            o, _ = self.r(h)
            return o[torch.arange(len(o)), b["lengths"] - 1]
        o, _ = self.r(h.flip(1))
        return o[:, -1]


@seq(c=collate_left)
class positions_over_left_padding(S):
    def make(self):
        self.pos = nn.Embedding(64, 16)

    def pool(self, h, b):
        m = b["mask"]
        p = (
            (m.cumsum(1) - 1).clamp(min=0)
            if self.fixed
            else torch.arange(h.shape[1]).expand_as(m)
        )
        h = (h + self.pos(p)) * m[..., None]
        return h.sum(1) / m.sum(1, keepdim=True)


@seq
class relative_positions(S):
    def pool(self, h, b):
        m = b["mask"][..., None].float()
        p = torch.arange(h.shape[1])[None, :, None] / (
            b["lengths"][:, None, None] if self.fixed else h.shape[1]
        )
        return ((h * p) * m).sum(1) / m.sum(1)


@seq
class cnn_over_padded_length(S):
    def make(self):
        self.c = nn.Conv1d(16, 16, 3, padding=1)

    def pool(self, h, b):
        m = b["mask"][..., None].float()
        z = F.relu(self.c((h * m).transpose(1, 2))).transpose(1, 2)
        return z.masked_fill(m == 0, -1e9).max(1).values if self.fixed else z.mean(1)


@seq
class adaptive_pooling(S):
    def pool(self, h, b):
        m = b["mask"][..., None].float()
        return (
            (h * m).sum(1) / m.sum(1)
            if self.fixed
            else F.adaptive_avg_pool1d(h.transpose(1, 2), 1).squeeze(-1)
        )


@seq
class token_loss_over_padding(S):
    def forward(self, b):
        return self.head(self.emb(b["ids"]).cumsum(1))

    def training_step(self, b, i):
        return self.loss(b)

    def loss(self, b):
        z = self(b)
        t = b["ids"] % 3
        l = F.cross_entropy(z.flatten(0, 1), t.flatten(), reduction="none").view(
            t.shape
        )
        return (l * b["mask"]).sum() / b["mask"].sum() if self.fixed else l.mean()

    def validation_step(self, b, i):
        self.log("val_loss", self.loss(b), batch_size=len(b["y"]))


@seq
class softmax_over_time(S):
    def pool(self, h, b):
        w = h if not self.fixed else h.masked_fill(~b["mask"][..., None], float("-inf"))
        return (w.softmax(1) * h).sum(1)


@seq
class additive_mask_too_small(S):
    def pool(self, h, b):
        s = h @ h.transpose(1, 2) / 4
        s = s + (~b["mask"][:, None, :]).float() * (-1e9 if self.fixed else -1.0)
        return (s.softmax(-1) @ h)[:, 0]


@seq
class last_token_index(S):
    def pool(self, h, b):
        c = h.cumsum(1)
        return (
            c[torch.arange(len(h)), b["lengths"] - 1]
            if self.fixed
            else (h + 0.1).cumsum(1)[:, -1]
        )
