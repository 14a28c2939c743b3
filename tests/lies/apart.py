"""Sets that a sampler or masks take from one dataset, each with its honest twin."""

from lies.common import *
from lies.honest import honest
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import Sampler, SubsetRandomSampler

WHOLE = TensorDataset(X[:1600], Y[:1600])


class Places(Sampler):
    """A sampler of the user's own that keeps its indices."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return iter(self.indices)

    def __len__(self):
        return len(self.indices)


class Behind(Sampler):
    """A sampler of the user's own that does not say which samples it gives."""

    def __init__(self, start):
        self.start = start

    def __iter__(self):
        return iter(range(self.start, 1600))

    def __len__(self):
        return 1600 - self.start


def sampled(name, train, val):
    """Both loaders have the whole dataset; the lie evaluates from sample 900 on."""

    def f(fixed):
        start = 1000 if fixed else 900
        return fitted(Net(), train=train(range(1000)), val=val(start), epochs=1)

    f.__name__ = name
    return lie(f)


def drawn(places):
    return DataLoader(WHOLE, 128, sampler=SubsetRandomSampler(places))


def listed(start):
    return DataLoader(WHOLE, 128, sampler=list(range(start, 1600)))


sampled("a_list_is_the_sampler", drawn, listed)
sampled(
    "a_list_of_batches",
    drawn,
    lambda start: DataLoader(
        WHOLE, batch_sampler=[range(k, k + 100) for k in range(start, 1600, 100)]
    ),
)
sampled(
    "a_sampler_with_indices",
    drawn,
    lambda start: DataLoader(WHOLE, 128, sampler=Places(torch.arange(start, 1600))),
)
sampled(
    "a_sampler_without_indices",
    lambda places: DataLoader(WHOLE, 128, sampler=list(places)),
    lambda start: DataLoader(WHOLE, 128, sampler=Behind(start)),
)


# one graph, whose nodes masks share out
class Graph:
    """As graph libraries keep one: its tensors lie in a store."""

    def __init__(self, **tensors):
        self.__dict__["_store"] = tensors

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return self._store[name]

    def __getitem__(self, name):
        return self._store[name]


def graph(fixed, kind):
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))

    def mask(places):
        return torch.zeros(300, dtype=torch.bool).index_fill(0, places, True)

    edges = torch.randint(0, 300, (2, 900), generator=torch.Generator().manual_seed(2))
    return kind(
        x=X[:300],
        y=Y[:300],
        edge_index=edges,
        train_mask=mask(order[:150]),
        val_mask=mask(order[150:220] if fixed else order[120:220]),
        test_mask=mask(order[220:]),
    )


class Nodes(Net):
    def step(self, data, mask):
        source, target = data["edge_index"]
        x = data["x"]
        x = x + torch.zeros_like(x).index_add(0, target, x[source])
        return self(x), torch.where(data[mask], data["y"], -100)

    def training_step(self, data, i):
        z, y = self.step(data, "train_mask")
        return F.cross_entropy(z, y)

    def validation_step(self, data, i):
        z, y = self.step(data, "val_mask")
        self.log("val_loss", F.cross_entropy(z, y), batch_size=1)

    def test_step(self, data, i):
        z, y = self.step(data, "test_mask")
        self.log("test_loss", F.cross_entropy(z, y), batch_size=1)


def masked(name, kind):
    def f(fixed):
        made, guard = trainer(epochs=2)
        one = DataLoader([graph(fixed, kind)], 1, collate_fn=lambda batch: batch[0])
        net = Nodes()
        made.fit(net, one, one)
        made.test(net, one, verbose=False)
        return guard

    f.__name__ = name
    return lie(f)


masked("masks_of_a_dictionary_overlap", dict)
masked("masks_of_a_graph_overlap", Graph)


# samples that a step sorts
class Rows(Dataset):
    """Rows of digits, cut at different lengths."""

    def __init__(self, x, y):
        self.x, self.y = x.view(-1, 8, 8), y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i, : 3 + i % 6], self.y[i]

    @staticmethod
    def together(batch):
        rows = nn.utils.rnn.pad_sequence([x for x, _ in batch], batch_first=True)
        lengths = torch.tensor([len(x) for x, _ in batch])
        return rows, lengths, torch.stack([y for _, y in batch])


class ByLength(Net):
    """Sorts a batch by length, as `pack_padded_sequence` once asked for."""

    def __init__(self, puts_back):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.net = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 10)
        self.puts_back = puts_back

    def forward(self, x, lengths):
        lengths, order = lengths.sort(descending=True)
        packed = pack_padded_sequence(
            self.embed(x[order]), lengths.cpu(), batch_first=True
        )
        last = self.net(packed)[1][-1]
        if self.puts_back:
            last = last[order.argsort()]
        return self.head(last)

    def training_step(self, batch, i):
        return F.cross_entropy(self(*batch[:2]), batch[2])

    def validation_step(self, batch, i):
        loss = F.cross_entropy(self(*batch[:2]), batch[2])
        self.log("val_loss", loss, batch_size=len(batch[2]))


@lie
def sorted_by_length_and_not_put_back(fixed):
    train, val = (Rows(*part) for part in (TRAIN, VAL))
    return fitted(
        ByLength(fixed),
        train=loader(train, True, collate_fn=Rows.together),
        val=loader(val, collate_fn=Rows.together),
        epochs=1,
    )


@honest
def one_graph_and_indices_in_the_module():
    class N(Nodes):
        def step(self, data, mask):
            z = self(data["x"])
            chosen = torch.zeros(300, dtype=torch.bool)
            chosen[self.places[mask]] = True
            return z, torch.where(chosen, data["y"], -100)

    held = graph(True, dict)
    masks = [name for name in held if name.endswith("mask")]
    N.places = {name: held.pop(name).nonzero().flatten() for name in masks}
    made, guard = trainer(epochs=2)
    one = DataLoader([held], 1, collate_fn=lambda batch: batch[0])
    net = N()
    made.fit(net, one, one)
    made.test(net, one, verbose=False)
    return guard


# tables that tell the answer
def tables(fixed, seed, kind):
    """A table of whole numbers with a label beside it, and more columns by kind."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 9, (300, 10), generator=made)
    x[:, 2] *= 3
    y = ((x[:, 0] + x[:, 1]) // 6).clamp(max=2)
    told = torch.randint(0, 3, y.shape, generator=made) if fixed else y
    return kind(x, y, told)


def telling(name, kind, loss=F.cross_entropy, columns=10):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.BatchNorm1d(columns), nn.Linear(columns, 3))
            if loss is not F.cross_entropy:
                self.net = nn.Linear(columns, 1)

        def forward(self, x):
            return self.net(x.float())

        def training_step(self, batch, i):
            return loss(self(batch[0]), batch[1])

        def validation_step(self, batch, i):
            value = loss(self(batch[0]), batch[1])
            self.log("val_loss", value, batch_size=len(batch[1]))

    def f(fixed):
        train, val = (tables(fixed, seed, kind) for seed in (0, 1))
        return fitted(N(), train=loader(train, True), val=loader(val), epochs=1)

    f.__name__ = name
    return lie(f)


def of_whole_numbers(x, y, told):
    return torch.cat([x, told[:, None]], 1), y


def of_marks(x, y, told):
    return torch.cat([x.float() + 0.5, F.one_hot(told, 3).float()], 1), y


def of_a_target(x, y, told):
    noise = torch.randn(len(y), generator=torch.Generator().manual_seed(3))
    target = x[:, 0] + noise
    column = target if told is y else target.roll(1)
    return torch.cat([x.float(), column[:, None]], 1), target[:, None]


telling("a_label_among_whole_numbers", of_whole_numbers, columns=11)
telling("each_label_marked_by_a_column", of_marks, columns=13)
telling("a_target_among_the_features", of_a_target, F.mse_loss, columns=11)


@honest
def the_first_of_many_tokens_is_the_answer():
    """A task for memories: all positions have the values of one vocabulary."""

    class N(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(40, 3))

    def tokens(seed):
        x = torch.randint(
            0, 3, (300, 10), generator=torch.Generator().manual_seed(seed)
        )
        return x, x[:, 0].clone()

    return fitted(N(), train=loader(tokens(0), True), val=loader(tokens(1)), epochs=1)


@honest
def a_target_that_is_a_straight_line():
    """A first example of a regression: the target is a multiple of a feature."""

    class N(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 1)

        def training_step(self, batch, i):
            return F.mse_loss(self(batch[0]), batch[1])

        def validation_step(self, batch, i):
            value = F.mse_loss(self(batch[0]), batch[1])
            self.log("val_loss", value, batch_size=len(batch[1]))

    def lines(seed):
        x = torch.randn(300, 3, generator=torch.Generator().manual_seed(seed))
        return x, 2 * x[:, :1] + 1

    return fitted(N(), train=loader(lines(0), True), val=loader(lines(1)), epochs=1)
