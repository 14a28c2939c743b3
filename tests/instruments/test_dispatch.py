"""One dispatch mode tells many subscribers of each operator, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_evalguard.instruments.dispatch import ModuleNames, Op, Subscriber, Watch

MODES = pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, torch.enable_grad]
)


class Log(Subscriber):
    """What each operator was, read while it ran."""

    def __init__(self, read: Callable[[Op], Any]) -> None:
        self.read = read
        self.said: list[Any] = []

    def after(self, op: Op) -> None:
        self.said.append(self.read(op))


def watched(call: Callable[[], Any], read: Callable[[Op], Any]) -> list[Any]:
    log = Log(read)
    with Watch(log):
        call()
    return log.said


def drew(call: Callable[[], Any]) -> bool:
    return any(watched(call, lambda op: op.draws))


x = torch.ones(4, 3, 8, 8)
q = torch.ones(2, 4, 8, 8)
lstm = nn.LSTM(3, 4, num_layers=2, dropout=0.5)
one_layer = nn.LSTM(3, 4, num_layers=1)

DRAWING: dict[str, Callable[[], Any]] = {
    "dropout": lambda: F.dropout(x),
    "dropout2d": lambda: F.dropout2d(x),
    "alpha_dropout": lambda: F.alpha_dropout(x, training=True),
    "feature_alpha_dropout": lambda: F.feature_alpha_dropout(x, training=True),
    "rrelu": lambda: F.rrelu(x, training=True),
    "sdpa": lambda: F.scaled_dot_product_attention(q, q, q, dropout_p=0.1),
    "lstm": lambda: lstm(torch.ones(2, 5, 3)),
    "randn_like": lambda: torch.randn_like(x),
    "randperm": lambda: torch.randperm(4),
    "bernoulli": lambda: torch.bernoulli(torch.full((4,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(4), 2),
    "gumbel_softmax": lambda: F.gumbel_softmax(torch.ones(2, 3)),
    "normal": lambda: torch.normal(torch.zeros(3), 1.0),
    "gamma": lambda: torch.distributions.Gamma(1.0, 1.0).sample(),
    "exponential": lambda: torch.empty(3).exponential_(),
}
INERT: dict[str, Callable[[], Any]] = {
    "dropout in eval": lambda: F.dropout(x, training=False),
    "dropout of nothing": lambda: F.dropout(x, 0.0),
    "dropout module in eval": lambda: nn.Dropout().eval()(x),
    "rrelu in eval": lambda: F.rrelu(x),
    "sdpa without dropout": lambda: F.scaled_dot_product_attention(q, q, q),
    "causal sdpa": lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True),
    "lstm in eval": lambda: lstm(torch.ones(2, 5, 3)),
    "lstm of one layer": lambda: one_layer(torch.ones(2, 5, 3)),
    "uninitialised memory": lambda: torch.empty(4).new_empty(2),
    "no samples": lambda: torch.rand(0),
    "instance norm": lambda: F.instance_norm(x),
}


@MODES
@pytest.mark.parametrize("name", DRAWING)
def test_a_draw_is_seen(
    name: str, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    lstm.train()
    with mode():
        assert drew(DRAWING[name])


@MODES
@pytest.mark.parametrize("name", INERT)
def test_what_draws_nothing_is_not_taken_for_a_draw(
    name: str, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    lstm.eval()
    state = torch.get_rng_state()
    with mode():
        assert not drew(INERT[name])
    assert torch.equal(torch.get_rng_state(), state)


# Below a mode torch excludes the keys above it, and operators that arrive whole take other paths.
WHOLE = {
    "Linear of a transposed batch": (
        nn.Linear(8, 20),
        (torch.randn(2, 8, 8).transpose(0, 1),),
    ),
    "GRU": (nn.GRU(24, 20, 2, batch_first=True), (torch.randn(3, 7, 24),)),
    "RNN": (nn.RNN(16, 8), (torch.randn(5, 2, 16).transpose(0, 1),)),
    "LSTM": (nn.LSTM(16, 8, 2, bidirectional=True), (torch.randn(5, 2, 16),)),
    "attention": (nn.MultiheadAttention(16, 2), (torch.randn(9, 3, 16),) * 3),
    "encoder": (nn.TransformerEncoderLayer(16, 2), (torch.randn(9, 3, 16),)),
    "encoder, batch first": (
        nn.TransformerEncoderLayer(16, 2, batch_first=True),
        (torch.randn(3, 9, 16),),
    ),
    "bilinear": (nn.Bilinear(8, 6, 5), (torch.randn(3, 8), torch.randn(3, 6))),
    "decoder": (
        nn.TransformerDecoderLayer(16, 2),
        (torch.randn(9, 3, 16), torch.randn(5, 3, 16)),
    ),
}


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value if isinstance(value, (list, tuple)) else ()
    return [leaf for item in items for leaf in leaves(item)]


def runs(module: nn.Module, args: tuple[Tensor, ...]) -> bool:
    """Whether torch itself can do it: 2.4 mixes types in the encoder layer's fast path."""
    try:
        module(*args)
    except RuntimeError as error:
        assert "must have the same dtype" in str(error)  # noqa: PT017
        return False
    return True


@MODES
@pytest.mark.parametrize("name", WHOLE)
def test_results_are_the_same_to_the_bit(
    name: str, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    module, args = WHOLE[name]
    module.eval()
    for autocast in (False, True):
        with mode(), torch.autocast("cpu", enabled=autocast):
            if autocast and not runs(module, args):
                pytest.skip("this torch does not cast in the fast path")
            bare = leaves(module(*args))
            with Watch(Log(lambda op: op.name)):
                once = leaves(module(*args))
                with Watch(Log(lambda op: op.name)):
                    twice = leaves(module(*args))
        assert (
            [t.dtype for t in bare]
            == [t.dtype for t in once]
            == [t.dtype for t in twice]
        )
        assert all(map(torch.equal, bare, once))
        assert all(map(torch.equal, bare, twice))


@pytest.mark.parametrize("grad", [False, True])
def test_what_kernels_call_is_cast_as_without_a_mode(grad: bool) -> None:
    matrix = torch.randn(5, 5)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        bare = torch.linalg.pinv(matrix)
        with Watch(Log(lambda op: op.name)):
            assert bare.dtype == torch.linalg.pinv(matrix).dtype == torch.bfloat16


@pytest.mark.parametrize("grad", [False, True])
def test_what_kernels_call_sees_a_conjugate_as_one(grad: bool) -> None:
    matrix = torch.randn(5, 3, dtype=torch.complex64, requires_grad=grad)
    bare = (
        torch.linalg.pinv(matrix),
        *torch.linalg.lstsq(matrix, matrix + 1, driver="gels")[:2],
    )
    with Watch(Log(lambda op: op.name)):
        inside = (
            torch.linalg.pinv(matrix),
            *torch.linalg.lstsq(matrix, matrix + 1, driver="gels")[:2],
        )
    assert all(map(torch.equal, bare, inside))


def test_an_operator_knows_where_it_stands() -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    net = nn.Sequential(nn.Linear(2, 2), Head())
    names = ModuleNames(net)
    said = watched(
        torch.no_grad()(lambda: net(torch.ones(1, 2))),
        lambda op: (op.name, names.nearest(op.modules())[0]),
    )
    assert [s for s in said if s[0] in ("addmm", "exp")] == [
        ("addmm", "0"),
        ("exp", "1"),
    ]


def test_the_root_answers_for_what_runs_in_no_module() -> None:
    net = nn.Linear(2, 2)
    assert watched(
        lambda: x.exp(), lambda op: ModuleNames(net).nearest(op.modules())
    ) == [("", net)]


def test_writes_are_seen_also_where_the_schema_hides_them() -> None:
    norm = nn.BatchNorm1d(3)
    written: list[Tensor] = [
        t
        for op in watched(lambda: norm(torch.randn(4, 3)), lambda op: op.written)
        for t in op
    ]
    held = {t.data_ptr() for t in written}
    assert {b.data_ptr() for b in norm.buffers()} == held
    assert not any(
        watched(lambda: norm.eval()(torch.randn(4, 3)), lambda op: op.written)
    )
    target = torch.zeros(3)
    assert watched(lambda: target.data.add_(1), lambda op: op.written)[-1][
        0
    ].data_ptr() == (target.data_ptr())


def test_a_subscriber_that_fails_is_dropped_and_the_operator_runs_on() -> None:
    class Fails(Subscriber):
        def before(self, op: Op) -> None:
            raise KeyError(op.name)

    fails, log = Fails(), Log(lambda op: op.name)
    watch = Watch(fails, log)
    with watch:
        total = torch.ones(3).exp().sum()
    assert total.item() == pytest.approx(3 * 2.718281828)
    assert log.said == ["ones", "exp", "sum"]
    assert [(s, type(e)) for s, e in watch.failures] == [(fails, KeyError)]


@MODES
def test_the_fast_path_and_the_result_stay_as_they_are(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    tokens = torch.randn(3, 5, 8)
    with mode():
        expected = encoder(tokens)
        log = Log(lambda op: op.name)
        with Watch(log):
            got = encoder(tokens)
    assert torch.equal(got, expected)
    fast = "_transformer_encoder_layer_fwd" in log.said
    assert fast == (mode is not torch.enable_grad)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_higher_order_operator_passes() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention
    heads = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        expected = flex(heads, heads, heads)
        with Watch(Log(lambda op: (op.name, op.arguments, op.written, op.draws))):
            got = flex(heads, heads, heads)
    assert torch.equal(got, expected)


@pytest.mark.skipif(
    not hasattr(torch.compiler, "set_stance"),
    reason="torch < 2.6 compiles anew below a dispatch mode",
)
def test_a_compiled_function_is_neither_recompiled_nor_given_up() -> None:
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    function = torch.compile(lambda t: t.sin() + t.cos(), backend=backend)
    with torch.no_grad():
        expected = function(torch.ones(3))
        with Watch(Log(lambda op: op.name)):
            assert torch.equal(function(torch.ones(3)), expected)
        assert torch.equal(function(torch.ones(3)), expected)
    assert len(compiled) == 1
