"""Scores of loops that the user's own code runs inside a fit, as people get them wrong."""

from lies.common import *
from sklearn.metrics import f1_score, roc_auc_score
from tqdm import tqdm
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lies.honest import honest


class ByHand(Net):
    """Evaluates the test set after each training epoch."""

    size = 64

    def __init__(self, fixed):
        super().__init__()
        self.fixed, self.values, self.right, self.seen = fixed, [], 0, 0
        self.metric = MulticlassAccuracy(10, average="micro")
        self.of_training, self.best, self.smooth = [], 0.0, None

    def training_step(self, batch, i):
        loss = super().training_step(batch, i)
        self.of_training.append(loss.detach())
        return loss

    def on_train_epoch_end(self):
        self.eval()
        with torch.no_grad():
            self.evaluate(loader(TEST, batch_size=self.size), self.fixed)
        self.train()
        self.of_training.clear()


def by_hand(function, size=64, **kw):
    kind = type("N", (ByHand,), {"evaluate": function, "size": size})
    return lambda fixed: fitted(kind(fixed), **kw)


def hand_lie(**kw):
    def register(function):
        TABLE.append((f"by_hand_{function.__name__}", run := by_hand(function, **kw)))
        run.__module__ = __name__
        return run

    return register


def hand_honest(**kw):
    def register(function):
        def program():
            return by_hand(function, **kw)(True)

        program.__name__ = f"by_hand_{function.__name__}"
        return honest(program)

    return register


# the mean of unequal batches
@hand_lie()
def mean_of_means(self, batches, fixed):
    values, sizes = [], []
    for x, y in batches:
        values.append((self(x).argmax(1) == y).float().mean().item())
        sizes.append(len(y) if fixed else 1)
    weighed = sum(v * n for v, n in zip(values, sizes))
    self.log("holdout_acc", weighed / sum(sizes))


@hand_lie()
def total_of_losses(self, batches, fixed):
    total = n = 0
    for x, y in batches:
        loss = F.cross_entropy(self(x), y)
        total += loss.item() * (len(y) if fixed else 1)
        n += len(y) if fixed else 1
    self.log("holdout_loss", total / n)


@lie
def by_hand_in_a_helper_of_a_callback(fixed):
    def evaluate(model):
        total = n = 0
        model.eval()
        with torch.inference_mode():
            for x, y in tqdm(loader(TEST), disable=True):
                share = (model(x).argmax(-1) == y).float().mean().item()
                total += share * (len(y) if fixed else 1)
                n += len(y) if fixed else 1
        model.train()
        return total / n

    class Own(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            module.log_dict({"ood/acc": evaluate(module)})

    return fitted(Net(), Own())


@lie
def by_hand_in_the_hook_of_validation(fixed):
    class N(Net):
        def on_validation_epoch_end(self):
            losses, sizes = [], []
            for x, y in loader(TEST):
                losses.append(F.cross_entropy(self(x), y))
                sizes.append(len(y) if fixed else 1)
            weights = torch.tensor(sizes) / sum(sizes)
            self.log("holdout_loss", (torch.stack(losses) * weights).sum())

    return fitted(N())


@lie
def by_hand_every_few_steps_to_the_logger(fixed):
    from lightning.pytorch.loggers import CSVLogger

    class Own(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step % 5:
                return
            right, shares = 0, []
            module.eval()
            with torch.no_grad():
                for x, y in loader(TEST):
                    same = (module(x).argmax(-1) == y).float()
                    shares.append(same.mean().item())
                    right += same.sum().item()
            module.train()
            value = right / len(TEST[1]) if fixed else sum(shares) / len(shares)
            step = trainer.global_step
            trainer.logger.log_metrics({"holdout_acc": value}, step=step)

    return fitted(Net(), Own(), logger=CSVLogger(tempfile.mkdtemp()))


@lie
def by_hand_logged_after_a_step(fixed):
    class N(Net):
        def on_train_batch_end(self, outputs, batch, i):
            if i != 3:
                return
            right, shares = 0, []
            self.eval()
            with torch.no_grad():
                for x, y in loader(TEST):
                    same = (self(x).argmax(-1) == y).float()
                    shares.append(same.mean())
                    right += same.sum()
            self.train()
            plain = torch.stack(shares).mean()
            self.log("holdout_acc", right / len(TEST[1]) if fixed else plain)

    return fitted(N())


# the last batch
@hand_lie()
def the_last_share(self, batches, fixed):
    right = 0
    for x, y in batches:
        same = self(x).argmax(1) == y
        share = same.float().mean()
        right += same.sum()
    self.log("holdout_acc", right / len(batches.dataset) if fixed else share)


@hand_lie()
def the_last_loss(self, batches, fixed):
    total = 0
    for x, y in batches:
        loss = F.cross_entropy(self(x), y)
        total += loss * len(y)
    self.log("holdout_loss", total / len(batches.dataset) if fixed else loss)


# the wrong count
@hand_lie()
def right_by_batches(self, batches, fixed):
    right = 0
    for x, y in batches:
        right += (self(x).argmax(1) == y).sum().item()
    self.log("holdout_acc", right / len(batches.dataset if fixed else batches))


@hand_lie()
def right_by_another_set(self, batches, fixed):
    right = 0
    for x, y in batches:
        right += (self(x).argmax(1) == y).sum().item()
    other = batches if fixed else self.trainer.train_dataloader
    self.log("holdout_acc", right / len(other.dataset))


@hand_lie()
def right_by_full_batches(self, batches, fixed):
    right = 0
    for x, y in batches:
        right += (self(x).argmax(1) == y).sum().item()
    full = len(batches) * batches.batch_size
    self.log("holdout_acc", right / (len(batches.dataset) if fixed else full))


@hand_lie()
def means_by_samples(self, batches, fixed):
    total = 0
    for x, y in batches:
        total += F.cross_entropy(self(x), y).item() * (len(y) if fixed else 1)
    self.log("holdout_loss", total / len(batches.dataset))


# what is no mean
@hand_lie()
def f1_of_each_batch(self, batches, fixed):
    f1, values = MulticlassF1Score(10), []
    for x, y in batches:
        values.append(f1(self(x), y))
    value = f1.compute() if fixed else torch.stack(values).mean()
    self.log("holdout_f1", value)


@hand_lie()
def f1_of_scikit_learn(self, batches, fixed):
    values, preds, target = [], [], []
    for x, y in batches:
        preds.append(self(x).argmax(1))
        target.append(y)
        values.append(f1_score(y, preds[-1], average="macro"))
    whole = f1_score(torch.cat(target), torch.cat(preds), average="macro")
    self.log("holdout_f1", float(whole if fixed else sum(values) / len(values)))


@hand_lie()
def root_of_each_batch(self, batches, fixed):
    roots, squares = [], 0
    for x, y in batches:
        apart = (self(x)[:, 0] - y) ** 2
        roots.append(apart.mean().sqrt())
        squares += apart.sum()
    whole = (squares / len(batches.dataset)).sqrt()
    self.log("holdout_rmse", whole if fixed else torch.stack(roots).mean())


# what is left of the evaluation before
@hand_lie(size=23)
def losses_are_never_cleared(self, batches, fixed):
    if fixed:
        self.values.clear()
    for x, y in batches:
        self.values.append(F.cross_entropy(self(x), y))
    self.log("holdout_loss", torch.stack(self.values).mean())


@hand_lie()
def counts_are_never_reset(self, batches, fixed):
    if fixed:
        self.right = self.seen = 0
    for x, y in batches:
        self.right += (self(x).argmax(1) == y).sum().item()
        self.seen += len(y)
    self.log("holdout_acc", self.right / self.seen)


@hand_lie()
def predictions_are_never_cleared(self, batches, fixed):
    if fixed:
        self.values.clear()
    for x, y in batches:
        self.values.append(self(x).argmax(1) == y)
    self.log("holdout_acc", torch.cat(self.values).float().mean())


@hand_lie()
def metric_is_never_reset(self, batches, fixed):
    if fixed:
        self.metric.reset()
    for x, y in batches:
        self.metric.update(self(x), y)
    self.log("holdout_acc", self.metric.compute())


@lie
def by_hand_with_the_metric_of_training(fixed):
    class N(Net):
        def __init__(self):
            super().__init__()
            self.acc = MulticlassAccuracy(10, average="micro")
            self.other = MulticlassAccuracy(10, average="micro")

        def training_step(self, batch, i):
            logits = self(batch[0])
            self.acc(logits, batch[1])
            return F.cross_entropy(logits, batch[1])

        def on_train_epoch_end(self):
            metric = self.other if fixed else self.acc
            self.eval()
            with torch.no_grad():
                for x, y in loader(TEST):
                    metric.update(self(x), y)
            self.train()
            self.log("holdout_acc", metric.compute())
            self.acc.reset()
            self.other.reset()

    return fitted(N())


# honest ones
@hand_honest(epochs=3)
def drops_the_last(self, batches, fixed):
    shares = []
    for x, y in loader(TEST, batch_size=64, drop_last=True):
        shares.append((self(x).argmax(1) == y).float().mean())
    self.log("holdout_acc", torch.stack(shares).mean())


@hand_honest(size=23)
def equal_batches(self, batches, fixed):
    total = 0
    for x, y in batches:
        total += F.cross_entropy(self(x), y).item()
    self.log("holdout_loss", total / len(batches))


@hand_honest(epochs=3)
def beside_the_loss_of_training(self, batches, fixed):
    right = n = 0
    for x, y in batches:
        right += (self(x).argmax(1) == y).sum()
        n += len(y)
    self.log("holdout_acc", right / n)
    self.log("train_loss", torch.stack(self.of_training).mean())
    self.log("last_train_loss", self.of_training[-1])


@hand_honest(epochs=4)
def best_and_smooth(self, batches, fixed):
    right = n = 0
    for x, y in batches:
        right += (self(x).argmax(1) == y).sum().item()
        n += len(y)
    value = right / n
    self.values.append(value)
    self.best = max(self.best, value)
    self.smooth = value if self.smooth is None else 0.9 * self.smooth + 0.1 * value
    self.log_dict({"best_acc": self.best, "ema_acc": self.smooth, "acc": value})
    self.log("smooth_acc", sum(self.values[-5:]) / len(self.values[-5:]))


@hand_honest(epochs=3)
def running_values(self, batches, fixed):
    right = n = 0
    loss = 0.0
    for x, y in batches:
        logits = self(x)
        right += (logits.argmax(1) == y).sum().item()
        n += len(y)
        loss += (F.cross_entropy(logits, y).item() - loss) * len(y) / n
        share = right / n
    self.log_dict({"holdout_acc": share, "holdout_loss": loss})


@hand_honest(epochs=3)
def spread_of_batches(self, batches, fixed):
    values = []
    for x, y in batches:
        values.append(F.cross_entropy(self(x), y))
    made = torch.stack(values)
    self.log_dict({"loss_max": made.max(), "loss_std": made.std()})
    self.log_dict({"loss_median": made.median(), "batches": float(len(values))})


@hand_honest(epochs=3)
def per_batch_on_purpose(self, batches, fixed):
    wrong = total = 0
    for x, y in batches:
        logits = self(x)
        wrong += (logits.argmax(1) != y).sum().item()
        total += F.cross_entropy(logits, y, reduction="sum").item()
    self.log("wrong_per_batch", wrong / len(batches))
    self.log("loss_per_batch", total / len(batches))
    self.log("holdout_loss", total / len(batches.dataset))


@hand_honest(epochs=3)
def some_batches_only(self, batches, fixed):
    shares, right, n = [], 0, 0
    for i, (x, y) in enumerate(batches):
        if i == 2:
            break
        same = self(x).argmax(1) == y
        shares.append(same.float().mean())
        right += same.sum()
        n += len(y)
    self.log_dict({"quick_acc": right / n, "mean_acc": torch.stack(shares).mean()})


@hand_honest(epochs=3)
def samples_are_shown(self, batches, fixed):
    x, _ = next(iter(batches))
    shown = self(x[:4]).softmax(1)
    self.values.append(shown)
    self.log("confidence", shown.max())


@hand_honest(epochs=3)
def all_at_once_after_the_loop(self, batches, fixed):
    probs, target = [], []
    for x, y in batches:
        probs.append(self(x).softmax(1))
        target.append(y)
    p, y = torch.cat(probs), torch.cat(target)
    self.log("holdout_acc", (p.argmax(1) == y).float().mean())
    self.log("holdout_f1", float(f1_score(y, p.argmax(1), average="macro")))
    self.log("holdout_auc", float(roc_auc_score(y, p, multi_class="ovr")))


@hand_honest(epochs=3)
def several_loaders_by_one_helper(self, batches, fixed):
    def evaluate(some):
        right = n = loss = 0
        for x, y in some:
            logits = self(x)
            right += (logits.argmax(1) == y).sum().item()
            loss += F.cross_entropy(logits, y).item() * len(y)
            n += len(y)
        return right / n, loss / n

    names = "ood", "val2", "train"
    for name, data in zip(names, (TEST, VAL, TRAIN)):
        acc, loss = evaluate(loader(data, batch_size=150))
        self.log_dict({f"{name}_acc": acc, f"{name}_loss": loss})


@hand_honest(epochs=3)
def pairs_of_two_loaders(self, batches, fixed):
    apart = []
    for (x, _), (z, _) in zip(batches, loader(VAL, batch_size=64)):
        n = min(len(x), len(z))
        apart.append((self(x[:n]) - self(z[:n])).norm(dim=1).mean())
    self.log("distance", torch.stack(apart).mean())


class Meter:
    def __init__(self):
        self.sum = self.count = self.val = self.avg = 0

    def update(self, value, n):
        self.val = value
        self.sum += value * n
        self.count += n
        self.avg = self.sum / self.count


@hand_honest(epochs=3)
def meters(self, batches, fixed):
    loss, right = Meter(), Meter()
    for x, y in batches:
        logits = self(x)
        loss.update(F.cross_entropy(logits, y).item(), len(y))
        right.update((logits.argmax(1) == y).float().mean().item(), len(y))
    self.log_dict({"holdout_loss": loss.avg, "holdout_acc": right.avg})


@hand_honest(epochs=3)
def some_answers_are_ignored(self, batches, fixed):
    right = n = loss = 0
    for x, y in batches:
        y = y.clone()
        y[::3] = -100
        logits = self(x)
        counted = y != -100
        right += ((logits.argmax(1) == y) & counted).sum().item()
        loss += F.cross_entropy(logits, y).item() * counted.sum().item()
        n += counted.sum().item()
    self.log_dict({"token_acc": right / n, "token_loss": loss / n})


@hand_honest(epochs=3)
def of_one_class(self, batches, fixed):
    hits = found = 0
    for x, y in batches:
        said = self(x).argmax(1) == 3
        hits += (said & (y == 3)).sum().item()
        found += said.sum().item()
    self.log("precision", hits / max(1, found))


@hand_honest(epochs=3)
def metric_of_its_own(self, batches, fixed):
    macro = MulticlassAccuracy(10)
    for x, y in batches:
        macro(self(x), y)
        self.metric(self(x), y)
    self.log_dict({"macro_acc": macro.compute(), "acc": self.metric.compute()})
    self.metric.reset()


@honest
def by_hand_a_loop_that_trains():
    class N(Net):
        def on_train_epoch_end(self):
            made = torch.optim.SGD(self.parameters(), 1e-3)
            losses = []
            for x, y in loader(TRAIN, batch_size=300):
                loss = F.cross_entropy(self(x), y)
                made.zero_grad()
                loss.backward()
                made.step()
                losses.append(loss.item())
            self.log("aux_loss", sum(losses) / len(losses))

    return fitted(N())


@honest
def by_hand_after_every_step():
    class Own(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, i):
            right = n = 0
            module.eval()
            with torch.no_grad():
                for x, y in loader(TEST, batch_size=150):
                    right += (module(x).argmax(1) == y).sum().item()
                    n += len(y)
            module.train()
            module.log_dict({"holdout_acc": right / n, "loss": outputs["loss"]})

    return fitted(Net(), Own())


@hand_honest(epochs=3)
def function_that_keeps_a_total(self, batches, fixed):
    kept = {"sum": 0.0, "count": 0}

    def so_far(value, n):
        kept["sum"] += value * n
        kept["count"] += n
        return kept["sum"] / kept["count"]

    shares = []
    for x, y in batches:
        loss = so_far(F.cross_entropy(self(x), y).item(), len(y))
        self.seen += (self(x).argmax(1) == y).sum().item()
        self.right += len(y)
        shares.append(self.seen / self.right)
    self.log_dict({"holdout_loss": loss, "holdout_acc": shares[-1]})
    self.seen = self.right = 0


@hand_honest(epochs=3)
def mean_over_groups(self, batches, fixed):
    groups = [range(10), range(10, 100), range(100, 299)]
    shares = []
    for x, y in DataLoader(TensorDataset(*TEST), batch_sampler=groups):
        shares.append((self(x).argmax(1) == y).float().mean())
    self.log("patient_acc", torch.stack(shares).mean())


@hand_honest(epochs=3)
def neighbours_in_the_training_set(self, batches, fixed):
    known, labels = [], []
    for x, y in loader(TRAIN, batch_size=500):
        known.append(self.net[0](x))
        labels.append(y)
    right = n = 0
    for x, y in batches:
        nearest = torch.cdist(self.net[0](x), torch.cat(known)).argmin(1)
        right += (torch.cat(labels)[nearest] == y).sum().item()
        n += len(y)
    self.log("knn_acc", right / n)


@hand_lie()
def the_last_value_of_a_function(self, batches, fixed):
    def entropy(logits, target):
        return F.cross_entropy(logits, target)

    total = 0
    for x, y in batches:
        value = entropy(self(x), y)
        total += value * len(y)
    self.log("holdout_loss", total / len(batches.dataset) if fixed else value)


@hand_honest(epochs=5)
def sums_of_batches_on_purpose(self, batches, fixed):
    total, sums = 0.0, []
    for x, y in batches:
        loss = F.cross_entropy(self(x), y, reduction="sum")
        total += loss.item()
        sums.append(loss)
    self.log("loss_per_batch", total / len(batches))
    self.log("sum_per_batch", torch.stack(sums).mean())


# loops that take some batches alone
@hand_lie()
def right_of_some_by_all(self, batches, fixed):
    right = n = 0
    for i, (x, y) in enumerate(batches):
        right += (self(x).argmax(1) == y).sum().item()
        n += len(y)
        if i == 2:
            break
    self.log("quick_acc", right / (n if fixed else len(batches.dataset)))


@hand_lie()
def the_last_of_some(self, batches, fixed):
    total = n = 0
    for i, (x, y) in enumerate(batches):
        loss = F.cross_entropy(self(x), y)
        total += loss * len(y)
        n += len(y)
        if i == 2:
            break
    self.log("quick_loss", total / n if fixed else loss)


@hand_lie()
def logged_in_the_loop_and_after_it(self, batches, fixed):
    shares, right = [], 0
    for i, (x, y) in enumerate(batches):
        same = self(x).argmax(1) == y
        self.log(f"share_of_batch_{i}", same.float().mean())
        shares.append(same.float().mean())
        right += same.sum()
    plain = torch.stack(shares).mean()
    self.log("holdout_acc", right / len(batches.dataset) if fixed else plain)
