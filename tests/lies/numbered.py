"""Labels of two sets that are numbered otherwise, each with its honest twin."""

import functools

from lies.common import *
from lies.common import fitted as fitted_in_epochs
from lies.honest import honest

fitted = functools.partial(fitted_in_epochs, epochs=9)


class Logs(Net):
    """Training logs its own scores."""

    def __init__(self, classes=10):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))

    def training_step(self, batch, i):
        z = self(batch[0])
        loss = F.cross_entropy(z, batch[1])
        right = (z.argmax(1) == batch[1]).float().mean()
        self.log_dict(
            {"train_loss": loss, "train_acc": right}, on_step=False, on_epoch=True
        )
        return loss


class LogsTheLossAlone(Logs):
    def training_step(self, batch, i):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss


def numbered(name, numbers, net=Logs, classes=10):
    """`numbers(y)` are the labels of the evaluated set."""

    def f(fixed):
        def of(data, numbers):
            return data[0], data[1] if fixed else numbers(data[1])

        val = loader(of(VAL, numbers))
        return fitted(net(classes), train=loader(TRAIN, True, 64), val=val)

    f.__name__ = name
    return lie(f)


def by(*places):
    return lambda y: torch.tensor(places)[y]


numbered("labels_in_another_order", by(3, 1, 4, 0, 5, 9, 2, 6, 8, 7))
numbered("labels_go_round_by_one", by(1, 2, 3, 4, 5, 6, 7, 8, 9, 0), LogsTheLossAlone)
numbered("two_labels_are_exchanged", by(0, 1, 2, 3, 4, 5, 6, 8, 7, 9))
numbered("labels_from_one_on", lambda y: y + 1, Logs, 11)


@honest
def a_model_that_exchanges_classes_because_it_has_not_learned():
    g = torch.Generator().manual_seed(0)
    centers = torch.eye(6, 64)
    y = torch.randint(0, 6, (1300,), generator=g)
    x = centers[y] * 10 + 0.1 * torch.randn(1300, 64, generator=g)

    class Exchanges(Logs):
        def __init__(self):
            super().__init__(6)
            self.net = nn.Linear(64, 6)
            self.net.weight.data = centers[[1, 0, 2, 3, 4, 5]].clone()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-6)

    val = loader((x[1000:], y[1000:]))
    return fitted(Exchanges(), train=loader((x[:1000], y[:1000]), True, 64), val=val)


@honest
def two_classes_turned_round_by_the_data():
    x, y = torch.randn(1300, 64), torch.arange(1300) % 2
    x[:, 0] = (2.0 * y - 1) * 3
    x[1000:, 0] *= -1
    train, val = (x[:1000], y[:1000]), (x[1000:], y[1000:])
    return fitted(Logs(2), train=loader(train, True, 64), val=loader(val))


def images(data, numbers=lambda y: y):
    return data[0].view(-1, 1, 8, 8), numbers(data[1])


@lie
def labels_of_images_from_one_on(fixed):
    """After one epoch, with nothing logged of training."""

    class Images(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 11))

    val = images(VAL, lambda y: y if fixed else y + 1)
    return fitted(
        Images(),
        train=loader(images(TRAIN), True, 64),
        val=loader(val, batch_size=16),
        epochs=1,
    )


@honest
def a_class_is_missing_at_each_end():
    val = VAL[0][VAL[1] > 0], VAL[1][VAL[1] > 0]
    train = TRAIN[0][TRAIN[1] < 9], TRAIN[1][TRAIN[1] < 9]
    few = torch.cat([train[0], X[1301:][Y[1301:] == 9][:4]])
    labels = torch.cat([train[1], torch.full((4,), 9)])
    return fitted(
        Net(), train=loader((few, labels), True, 64), val=loader(val), epochs=1
    )


@honest
def an_index_beside_the_labels():
    def of(data, first):
        return (*data, torch.arange(len(data[1])) // 5 + first)

    train, val = of(TRAIN, 0), of(VAL, 1)
    return fitted(Net(), train=loader(train, True, 64), val=loader(val), epochs=1)


# ids of two tokenizers
def texts(seed, begin, end, words=slice(4, 90)):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(words.start, words.stop, (300, 16), generator=g)
    lengths = torch.randint(3, 14, (300, 1), generator=g)
    places = torch.arange(16)
    ids = ids.masked_fill(places > lengths, 0)
    if end is not None:
        ids = ids.masked_fill(places == lengths, end)
    ids[:, 0] = begin
    return ids, torch.randint(0, 3, (300,), generator=g)


class Text(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(120, 8), nn.Flatten(), nn.Linear(128, 3))


def of_texts(train, val):
    val = loader(val, batch_size=32)
    return fitted(Text(), train=loader(train, True, 32), val=val, epochs=1)


@lie
def ids_of_another_tokenizer(fixed):
    other = (1, 2) if fixed else (101, 102)
    return of_texts(texts(0, 1, 2), texts(1, *other))


@honest
def texts_in_another_language():
    """They begin with the language, and have other words."""
    return of_texts(texts(0, 110, 2), texts(1, 111, 2, slice(90, 110)))


@honest
def texts_that_end_with_any_word():
    return of_texts(texts(0, 110, None), texts(1, 111, None))
