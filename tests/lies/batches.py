"""Outputs that depend on the rest of the batch: what a step scores, graphs, two samples alone."""

import functools

from lies.common import *
from lies.common import fitted as fitted_in_epochs
from lies.honest import honest

fitted = functools.partial(fitted_in_epochs, epochs=1)


# what a step makes of the outputs, and scores
def scoring(name, score, batch_size=128):
    """`score(module, logits, y, fixed)` logs a score; nothing is returned."""

    def f(fixed):
        class Scored(Net):
            def __init__(self):
                super().__init__()
                self.accuracy = torchmetrics.classification.BinaryAccuracy()

            def validation_step(self, batch, i):
                score(self, self(batch[0]), batch[1], fixed)

        return fitted(Scored(), val=loader(VAL, batch_size=batch_size))

    f.__name__ = name
    return lie(f)


def centred(self, z, y, fixed):
    z = z - z.mean(1 if fixed else 0, keepdim=True)
    right = (z.argmax(1) == y).float().mean()
    self.log("val_acc", right, batch_size=len(y))


def above_the_median(self, z, y, fixed):
    edge = 0.0 if fixed else z[:, 0].median()
    right = (z[:, 0] > edge).long() == (y == 0).long()
    self.log("val_acc", right.float().mean(), batch_size=len(y))


def above_the_mean_in_a_metric(self, z, y, fixed):
    edge = 0.0 if fixed else z[:, 0].mean()
    self.accuracy((z[:, 0] > edge).long(), (y == 0).long())
    self.log("val_acc", self.accuracy)


def ranked(self, z, y, fixed):
    place = z[:, 0].sigmoid() if fixed else z[:, 0].argsort().argsort() / len(z)
    right = (place > 0.5).long() == (y == 0).long()
    self.log("val_acc", right.float().mean(), batch_size=len(y))


def standardised_regression(self, z, y, fixed):
    guess = z[:, 0] if fixed else (z[:, 0] - z[:, 0].mean()) / z[:, 0].std()
    self.log("val_mse", F.mse_loss(guess, (y / 5 - 1)), batch_size=len(y))


scoring("outputs_are_centred_in_the_step", centred)
scoring("labels_are_cut_at_the_batch_median", above_the_median)
scoring("labels_are_cut_at_the_batch_mean", above_the_mean_in_a_metric)
scoring("labels_are_ranks_in_the_batch", ranked)
scoring("a_regression_is_standardised", standardised_regression)


@lie
def a_nearest_neighbour_in_the_batch(fixed):
    class Neighbours(Net):
        def validation_step(self, batch, i):
            z, y = self(batch[0]), batch[1]
            if fixed:
                near = torch.cdist(z, self(TRAIN[0][:50])).argmin(1)
                found = TRAIN[1][near]
            else:
                found = y[torch.cdist(z, z).fill_diagonal_(1e9).argmin(1)]
            self.log("val_acc", (found == y).float().mean(), batch_size=len(y))

    return fitted(Neighbours())


# batches of two and of three
def scaled(name, batch_size):
    def f(fixed):
        class Scaled(Net):
            def forward(self, x):
                z = self.net(x)
                return z / (z.abs().amax(1, keepdim=True) if fixed else z.abs().max())

        return fitted(Scaled(), val=loader(VAL, batch_size=batch_size))

    f.__name__ = name
    return lie(f)


scaled("two_samples_are_scaled_together", 2)
scaled("three_samples_are_scaled_together", 3)


# graphs
class Graph:
    def __init__(self, x, edges, y):
        self.x, self.edges, self.y = x, edges, y


class Graphs:
    """A batch of graphs, by the names that torch-geometric gives it."""

    def __init__(self, x, edges, y, batch, sizes):
        self.x, self.edges, self.y, self.batch = x, edges, y, batch
        self._sizes = sizes
        self.num_graphs = len(y)

    @classmethod
    def from_data_list(cls, graphs):
        nodes = [len(graph.x) for graph in graphs]
        first = torch.tensor([0, *nodes]).cumsum(0)
        moved = [g.edges + n for g, n in zip(graphs, first.tolist(), strict=False)]
        return cls(
            torch.cat([graph.x for graph in graphs]),
            torch.cat(moved, 1),
            torch.cat([graph.y for graph in graphs]),
            torch.arange(len(graphs)).repeat_interleave(torch.tensor(nodes)),
            [(len(graph.x), graph.edges.shape[1]) for graph in graphs],
        )

    def to_data_list(self):
        nodes, edges = zip(*self._sizes, strict=True)
        first = torch.tensor([0, *nodes]).cumsum(0).tolist()
        parts = zip(
            self.x.split(nodes), self.edges.split(edges, 1), self.y, first, strict=False
        )
        return [Graph(x, e - n, y[None]) for x, e, y, n in parts]

    def to(self, device):
        return self


def graphs(samples, seed):
    g = torch.Generator().manual_seed(seed)
    made = []
    for k in range(samples):
        n = int(torch.randint(4, 9, (1,), generator=g))
        x = torch.randn(n, 8, generator=g) + k % 2
        edges = torch.randint(0, n, (2, 3 * n), generator=g)
        made.append(Graph(x, edges, torch.tensor([k % 2])))
    return made


def pooled(x, batch, count):
    total = x.new_zeros(count, x.shape[1]).index_add(0, batch, x)
    return total / batch.bincount(minlength=count).clamp(min=1)[:, None]


class GraphNet(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.head = nn.Linear(16, 2)

    def nodes(self, h, g):
        return h

    def forward(self, g):
        h = self.first(g.x)
        source, to = g.edges
        h = (h + torch.zeros_like(h).index_add(0, to, h[source])).relu()
        return self.head(pooled(self.nodes(h, g), g.batch, g.num_graphs))

    def training_step(self, g, i):
        return F.cross_entropy(self(g), g.y)

    def validation_step(self, g, i):
        self.log("val_loss", F.cross_entropy(self(g), g.y), batch_size=g.num_graphs)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def of_graphs(name, nodes, batch_size=16):
    """`nodes(module, h, graphs, fixed)` makes other nodes."""

    def f(fixed):
        class Made(GraphNet):
            def nodes(self, h, g):
                return nodes(self, h, g, fixed)

        made = functools.partial(DataLoader, collate_fn=Graphs.from_data_list)
        return fitted(
            Made(),
            train=made(graphs(64, 0), batch_size, shuffle=True),
            val=made(graphs(48, 1), batch_size),
        )

    f.__name__ = name
    return f


def centred_nodes(self, h, g, fixed):
    if not fixed:
        return (h - h.mean(0)) / (h.std(0) + 1e-5)
    return h - pooled(h, g.batch, g.num_graphs)[g.batch]


def attended(self, h, g, fixed):
    weight = h.mean(1, keepdim=True)
    if not fixed:
        return h * weight.softmax(0) * len(h)
    weight = weight.exp()
    return h * weight / pooled(weight, g.batch, g.num_graphs)[g.batch]


def virtual_node(self, h, g, fixed):
    if not fixed:
        return h + h.sum(0)
    return h + pooled(h, g.batch, g.num_graphs)[g.batch]


lie(of_graphs("nodes_of_all_graphs_are_normalised", centred_nodes))
lie(of_graphs("attention_over_the_nodes_of_all_graphs", attended))
lie(of_graphs("a_virtual_node_of_all_graphs", virtual_node))
lie(of_graphs("two_graphs_are_normalised_together", centred_nodes, 2))


@honest
def nodes_are_sorted_and_put_back():
    def nodes(self, h, g, fixed):
        order = h[:, 0].argsort()
        return self.first.weight.new_zeros(h.shape).index_copy(0, order, h[order])

    return of_graphs("sorted", nodes)(True)


@honest
def nodes_that_score_the_same_are_taken_in_any_order():
    def nodes(self, h, g, fixed):
        score = (h.sum(1) > h.sum(1).median()).float() * 0
        order = score.sort(descending=True).indices
        first = order[g.batch[order].sort(stable=True).indices]
        keep = torch.zeros(len(h), 1).index_fill(0, first[::3], 1.0)
        return h * (0.999 + 0.001 * keep)

    return of_graphs("ties", nodes)(True)


# a loss may depend on the batch
class Contrastive(Net):
    def compare(self, x, z):
        z = F.normalize(z, dim=1)
        return z @ F.normalize(self(x * 0.9), dim=1).t() * 10

    def validation_step(self, batch, i):
        sim = self.compare(batch[0], self(batch[0]))
        own = torch.arange(len(sim))
        self.log("val_loss", F.cross_entropy(sim, own), batch_size=len(sim))
        found = (sim.argmax(1) == own).float().mean()
        self.log("val_found", found, batch_size=len(sim))
        return sim


@honest
def a_contrastive_step_finds_its_own_in_the_batch():
    return fitted(Contrastive())


@honest
def a_contrastive_step_of_fixed_length():
    class Fixed(Contrastive):
        def forward(self, x):
            return self.net(x.view(100, 64))

    made = functools.partial(loader, batch_size=100)
    return fitted(
        Fixed(),
        train=made((X[:1000], Y[:1000])),
        val=made((X[1000:1300], Y[1000:1300])),
    )


@honest
def both_views_stand_in_one_batch():
    class Views(Net):
        def validation_step(self, batch, i):
            z = F.normalize(self(batch[0]), dim=1)
            sim = (z @ z.t()).fill_diagonal_(-1e9)
            n = len(z)
            other = (torch.arange(n) + n // 2) % n
            found = (sim.argmax(1) == other).float().mean()
            self.log("val_found", found, batch_size=n)

    return fitted(Views(), val=loader((X[1000:1300], Y[1000:1300]), batch_size=100))


@honest
def two_logits_are_read_as_they_come():
    class Read(Net):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.classification.BinaryAccuracy()
            self.net[3].bias.data.fill_(0.2)

        def validation_step(self, batch, i):
            z = self(batch[0])[:, 0]
            self.accuracy(z.sigmoid(), (batch[1] == 0).long())
            self.log("val_acc", self.accuracy)

    return fitted(Read(), val=loader(VAL, batch_size=4))
