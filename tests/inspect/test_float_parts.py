"""Models with float parts beside binary layers: recurrent layers, attention, what is compiled, branches.

Multiply-accumulates are those of a formula, written out for each, and of torch's own counter where it knows the part.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers.models import Gate, Model, conv3x3
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import bnnfx

STEPS, WIDTH = 20, 8  # of the sequence of one sample: a map of 4 x 5


def attention(queries: int, keys: int, key_width: int = WIDTH, value_width: int = WIDTH) -> int:
    """Projections of queries and results, of keys and values; scores, and averages by them."""
    return 2 * queries * WIDTH**2 + keys * WIDTH * (key_width + value_width) + 2 * queries * keys * WIDTH


class Part(NamedTuple):
    """A float part, how it is called on a sequence, its multiply-accumulates, and whether torch counts them."""

    make: Callable[[], nn.Module]
    call: Callable[[Any, Tensor], Any]
    macs: int
    by_torch: bool = True


def first(part: Any, x: Tensor) -> Any:
    return part(x)[0]


def attend(part: Any, x: Tensor, **options: Any) -> Any:
    return part(x, x, x, **options)[0]


BATCHED: dict[str, Any] = {"batch_first": True}
ENCODER = attention(STEPS, STEPS) + STEPS * 2 * 8 * 16

PARTS = {
    # torch's counter does not know the kernel that runs a whole LSTM
    "lstm": Part(lambda: nn.LSTM(8, 8, **BATCHED), first, STEPS * 4 * 8 * (8 + 8), False),
    "last state": Part(
        lambda: nn.LSTM(8, 8, 2, **BATCHED),
        lambda part, x: part(x)[1][0].transpose(0, 1),
        2 * STEPS * 4 * 8 * (8 + 8),
        False,
    ),
    "initial state": Part(
        lambda: nn.LSTM(8, 8, **BATCHED),
        lambda part, x: part(x, 2 * (torch.zeros(1, x.size(0), 8),))[0],
        STEPS * 4 * 8 * (8 + 8),
        False,
    ),
    "projected": Part(lambda: nn.LSTM(8, 16, proj_size=8, **BATCHED), first, STEPS * (4 * 16 * (8 + 8) + 16 * 8)),
    "sequence first": Part(
        lambda: nn.GRU(8, 8), lambda part, x: part(x.transpose(0, 1))[0].transpose(0, 1), STEPS * 3 * 8 * 16
    ),
    "gru": Part(lambda: nn.GRU(8, 8, **BATCHED), first, STEPS * 3 * 8 * (8 + 8)),
    "both directions": Part(lambda: nn.RNN(8, 4, bidirectional=True, **BATCHED), first, STEPS * 2 * 4 * (8 + 4)),
    "cell": Part(lambda: nn.GRUCell(8, 8), lambda part, x: part(x[:, 0])[:, None], 3 * 8 * (8 + 8)),
    "attention": Part(lambda: nn.MultiheadAttention(8, 2, **BATCHED), attend, attention(STEPS, STEPS)),
    # torch's counter does not know the kernel for processors
    "without weights": Part(
        lambda: nn.MultiheadAttention(8, 2, **BATCHED),
        lambda part, x: attend(part, x, need_weights=False),
        attention(STEPS, STEPS),
        False,
    ),
    "masked": Part(
        lambda: nn.MultiheadAttention(8, 2),
        lambda part, x: attend(part, x.transpose(0, 1), key_padding_mask=x[..., 0] > 9).transpose(0, 1),
        attention(STEPS, STEPS),
    ),
    "keywords": Part(
        lambda: nn.MultiheadAttention(8, 2, kdim=3, vdim=2, **BATCHED),
        lambda part, x: part(value=x[:, :7, :2], key=x[:, :7, :3], query=x)[0],
        attention(STEPS, 7, 3, 2),
    ),
    "encoder layer": Part(lambda: nn.TransformerEncoderLayer(8, 2, 16, **BATCHED), lambda part, x: part(x), ENCODER),
    "encoder": Part(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, **BATCHED), 2),
        lambda part, x: part(x),
        2 * ENCODER,
    ),
    "decoder layer": Part(
        lambda: nn.TransformerDecoderLayer(8, 2, 16, **BATCHED),
        lambda part, x: part(x, x[:, :7]),
        attention(STEPS, STEPS) + attention(STEPS, 7) + STEPS * 2 * 8 * 16,
    ),
}


class Inside(nn.Module):
    """A part inside a module that cannot be traced."""

    def __init__(self, inner: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.inner, x) if x.sum() > -math.inf else x


class Beside(Model):
    """Convolutions, two of them binary, and a float part on their maps, read as sequences."""

    shapes = ((2, 3, 4, 5),)

    def __init__(self, part: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.norm = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = conv3x3(8, 8), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = conv3x3(8, 8), nn.BatchNorm2d(8)
        self.part, self.call, self.fc = part, call, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv2(self.norm1(self.conv1(self.norm(self.stem(x))))))
        return self.fc(self.call(self.part, x.flatten(2).transpose(1, 2)))


def beside(name: str, inside: bool) -> Beside:
    torch.manual_seed(0)
    part = PARTS[name]
    if inside:
        return Beside(Inside(part.make(), part.call), lambda part, x: part(x)).eval()
    return Beside(part.make(), part.call).eval()


def macs_by_torch(part: nn.Module, call: Callable[[Any, Tensor], Any]) -> float:
    """Of one sample; in training, as torch has kernels for evaluation that it does not count."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(copy.deepcopy(part).train(), torch.randn(2, STEPS, WIDTH))
    return counter.get_total_flops() / 4


OF_THE_PART = ("part", "scaled_dot_product_attention", "matmul")


@pytest.mark.parametrize("name", PARTS)
def test_macs_of_the_part(name: str) -> None:
    part = PARTS[name]
    if part.by_torch:
        assert macs_by_torch(part.make(), part.call) == part.macs
    for inside in (False, True):
        model = beside(name, inside)
        summary = bnnfx.summary(model, model.inputs())
        rows = [layer for layer in summary.layers if layer.name.startswith(OF_THE_PART)]
        assert sum(row.cost.float_macs for row in rows) == part.macs
        assert all(row.output_shape for row in rows)
        totals = summary.totals
        counted = totals.float_parameters + totals.other_parameters + 2 * totals.batch_norm_channels
        assert counted == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("inside", [False, True], ids=["leaf", "inside a leaf"])
@pytest.mark.parametrize("name", ["last state", "gru", "both directions", "attention", "encoder layer"])
def test_every_stage_can_be_looked_at(name: str, inside: bool, tmp_path) -> None:
    model = beside(name, inside)
    inputs = model.inputs()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*kept as a float leaf")
        bnn = bnnfx.convert(model, "bireal", example_inputs=inputs)
    packed = bnnfx.lower(bnn, inputs)
    weighted = [key for key, _ in model.part.named_modules(prefix="part")]
    for graph in (bnn, packed):
        explanation = bnnfx.explain(graph)
        binary = [layer.name for layer in explanation.layers if layer.binarized]
        written_out = binary[2:]  # attention is: its layers are binary, under names in the part
        assert binary[:2] == ["conv1", "conv2"] and all(name.startswith("part.") for name in written_out)
        named = [layer.name for layer in explanation.layers if layer.name.startswith("part")]
        floats = set(named) - set(written_out)
        assert named and floats <= set(weighted) and all(explanation[layer].findings for layer in floats)
        assert inside or bool(written_out) == (name in ("attention", "encoder layer"))
        rows = [row for row in bnnfx.summary(graph, inputs).layers if row.name.startswith(OF_THE_PART)]
        assert sum(row.cost.float_macs + row.cost.binary_macs for row in rows) == PARTS[name].macs
    for graph in (model, bnn, packed):
        assert 'id="node-part' in bnnfx.draw(graph, tmp_path / "graph.svg", example_inputs=inputs).read_text()
    assert bnnfx.report([model, bnn, packed], tmp_path / "report.html", example_inputs=inputs).stat().st_size


def test_sequences_of_several_lengths() -> None:
    """A packed sequence has the steps of all samples behind one another."""
    lengths = torch.tensor([20, 10])
    part = Inside(
        nn.LSTM(8, 8, **BATCHED), lambda lstm, x: lstm(pack_padded_sequence(x, lengths, batch_first=True))[1][0][-1]
    )
    (row,) = bnnfx.summary(part, (torch.randn(2, STEPS, WIDTH),)).layers
    assert row.cost.float_macs == 30 * 4 * 8 * (8 + 8) // 2


def test_a_model_that_is_one_layer() -> None:
    (row,) = bnnfx.summary(nn.LSTM(8, 8, **BATCHED), (torch.randn(2, STEPS, WIDTH),)).layers
    assert (row.name, row.cost.float_macs) == ("(the model)", PARTS["lstm"].macs)


# --- what runs in another way than Python says ---


class Branches(nn.Module):
    """A convolution in each branch of `torch.cond`."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = conv3x3(8, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.large(x), lambda x: self.small(x) + 0, (x,))


class Loop(nn.Module):
    """A convolution three times, by `torch.while_loop`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv3x3(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.tensor(0)
        return torch.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, self.conv(x)), (start, x))[1]


def rows_of(part: nn.Module, x: Tensor) -> list[str]:
    summary = bnnfx.summary(nn.Sequential(part, nn.ReLU()), (x,))
    return [layer.name for layer in summary.layers]


@pytest.mark.parametrize("batch", [2, 13])  # a picture is laid out for 13
def test_the_branch_taken_is_counted(batch: int, tmp_path) -> None:
    """Also after runs in which it was compiled, without anybody listening."""
    part, x = Branches().eval(), torch.ones(batch, 8, 4, 5)
    bnnfx.draw(nn.Sequential(part, nn.ReLU()), tmp_path / "graph.svg", example_inputs=(x,))
    with torch.no_grad():
        part(x)
    for _ in range(2):
        assert rows_of(part, x) == ["0.large"]
        assert rows_of(part, -x) == ["0.small"]
    assert not any(module._forward_hooks for module in part.modules())


def test_every_round_of_a_loop_is_counted() -> None:
    assert rows_of(Loop().eval(), torch.ones(2, 8, 4, 5)) == 3 * ["0.conv"]


def test_branches_beside_binary_layers(tmp_path) -> None:
    model = Beside(nn.Identity(), lambda part, x: x).eval()
    model.norm2 = nn.Sequential(nn.BatchNorm2d(8), Branches())
    inputs = model.inputs()
    with pytest.warns(UserWarning, match=r"'norm2\.1' is kept as a float leaf"):
        bnn = bnnfx.convert(model, "bireal", example_inputs=inputs)
    packed = bnnfx.lower(bnn, inputs)
    for graph in (model, bnn, packed):
        names = [row.name for row in bnnfx.summary(graph, inputs).layers]
        assert len({"norm2.1.large", "norm2.1.small"} & set(names)) == 1
        bnnfx.draw(graph, tmp_path / "graph.svg", example_inputs=inputs)
    assert "inside 'norm2.1'" in bnnfx.explain(packed)["norm2.1.large"].findings[0].reason
    bnnfx.report([model, bnn, packed], tmp_path / "report.html", example_inputs=inputs)


def test_compiled_part(tmp_path) -> None:
    """Compiled code does not run without values; it is not asked to."""
    part = torch.compile(nn.Sequential(conv3x3(8, 8), nn.ReLU()))
    x = torch.ones(2, 8, 4, 5)
    assert rows_of(part, x) == ["0._orig_mod.0"]
    bnnfx.draw(nn.Sequential(part, nn.ReLU()), tmp_path / "graph.svg", example_inputs=(x,))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_has_no_rows() -> None:
    scripted = Inside(torch.jit.trace(conv3x3(8, 8), torch.ones(1, 8, 4, 4)), lambda part, x: part(x))
    assert rows_of(scripted, torch.ones(2, 8, 4, 5)) == []


def test_parts_of_one_another() -> None:
    """A layer that the graph calls and a leaf calls, and a leaf inside another."""
    layer, x = conv3x3(8, 8), torch.ones(2, 8, 4, 5)
    nn.init.constant_(layer.weight, 0.1)  # the gate calls it where the sum of its input is positive
    gate = Gate(8)
    gate.conv = layer
    assert rows_of(nn.Sequential(gate, layer, gate), x) == ["0.0.conv", "0.0.conv", "0.0.conv"]
    outer = Inside(gate, lambda part, x: part(x))
    assert rows_of(nn.Sequential(gate, outer), x) == ["0.0.conv", "0.1.inner.conv"]
