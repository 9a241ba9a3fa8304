"""A kind of layer that another package could bring: one class, registered, goes through everything."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnnfx
from bnnfx import Config, LayerConfig
from bnnfx.analysis import FlipRate, quantization_error
from bnnfx.errors import Refusal
from bnnfx.graph import edit
from bnnfx.nn import BINARY_LAYERS, BinaryConv2d, BinaryLayer, SignActivation, layer_kind, register_layer
from bnnfx.nn.binary_layer import MapConvolution, MapShape
from bnnfx.nn.sign import sign
from bnnfx.numerics.convolution import Geometry
from bnnfx.numerics.surrogates import approx_sign
from bnnfx.schemes import schemes


class BinaryRows(BinaryLayer, nn.Conv3d):
    """A 3-D convolution along its last axis only: that of a map whose rows are the two others."""

    axes = 5
    layout = "(N, C, D, H, W)"
    batch_norm = nn.BatchNorm3d

    @classmethod
    def refuses(cls, layer: nn.Module) -> Refusal | None:
        """A kernel that goes along another axis."""
        assert isinstance(layer, nn.Conv3d)
        if layer.kernel_size[:2] == (1, 1):
            return None
        return Refusal("its kernel is no row", "give a row")

    def accumulate(self, x: Tensor, signs: Tensor) -> Tensor:
        """`float[N, C, D, H, W]` to integers `float[N, O, D, H, OW]`."""
        accumulator: Tensor = self._conv_forward(x, signs, None)
        return accumulator

    def as_map(self, sizes: tuple[int, ...]) -> MapShape:
        """As many rows as there are."""
        channels, depth, height, width = sizes
        return channels, depth * height, width

    def convolution(self, of: MapShape) -> MapConvolution:
        """With a kernel of one row."""
        padding = cast(tuple[int, ...], self.padding)
        window = Geometry((1, self.stride[2]), (0, padding[2]), (1, self.dilation[2]))
        return MapConvolution(self.in_channels, (1, self.kernel_size[2]), window, self.groups)


def along(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, **more: Any):
    """A 3-D convolution along the last axis."""
    window = {"stride": (1, 1, stride), "padding": (0, 0, padding), "dilation": (1, 1, dilation)}
    return nn.Conv3d(inputs, outputs, (1, 1, kernel), **window, **more)


@pytest.fixture
def registered() -> Iterator[None]:
    register_layer(nn.Conv3d)(BinaryRows)
    yield
    del BINARY_LAYERS[nn.Conv3d]


class Block(nn.Module):
    """Two convolutions and an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = along(8, 8, 3, padding=2, dilation=2, bias=False)
        self.bn1, self.relu = nn.BatchNorm3d(8), nn.ReLU()
        self.conv2 = along(8, 8, 5, padding=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.bn1(self.conv1(x)))) + x)


class Rows(nn.Module):
    """A stem, a block, a strided layer that gets its batch norm from the compiler, and a classifier on features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(along(3, 8, 7, padding=3), nn.BatchNorm3d(8), nn.ReLU())
        self.block = Block()
        self.down = along(8, 12, 4, stride=3, padding=1)
        self.hidden, self.head = nn.Linear(12 * 2 * 3 * 6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.block(self.stem(x)))
        return self.head(self.hidden(torch.flatten(x, 1)))


def trained(scheme: str) -> tuple[torch.fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, 3, 18)
    bnn = bnnfx.convert(Rows(), scheme, example_inputs=(x,))
    optimizer = torch.optim.SGD(bnn.parameters(), 0.05)
    for _ in bnnfx.Schedule(bnn, 2):
        optimizer.zero_grad()
        bnn(x).square().sum().backward()
        optimizer.step()
    return bnnfx.api.split_if_ternary(bnn.eval()), x


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("scheme", schemes())
def test_goes_through_everything(scheme, tmp_path):
    bnn, x = trained(scheme)
    kinds = {name: type(m) for name, m in bnn.named_modules() if isinstance(m, BinaryLayer)}
    assert [name for name, kind in kinds.items() if kind is BinaryRows] == ["block.conv1", "block.conv2", "down"]
    assert isinstance(bnn.get_submodule("down_bn"), nn.BatchNorm3d)
    packed = bnnfx.lower(bnn, (x[:1],))
    against = bnnfx.verify(bnn, packed, (x,))
    assert against and len(against.nodes) >= 4, str(against)
    path = bnnfx.export_onnx(packed, tmp_path / "rows.onnx")
    assert bnnfx.verify(packed, path, (x,))
    given = [bnnfx.load(path, kernels=kernels).run(x) for kernels in (True, False)]
    assert np.array_equal(*given) and np.std(given[0]) > 0


@pytest.mark.usefixtures("registered")
def test_threshold_of_every_sample():
    """RBNN with centring compares with the mean of a map, whatever its axes."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, 3, 18)
    bnn = bnnfx.convert(Rows(), "rbnn", config=Config(options={"centre": True})).eval()
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, (x[:1],)), (x,))


@pytest.mark.usefixtures("registered")
def test_is_known_to_reports():
    bnn, x = trained("bireal")
    explained = bnnfx.explain(bnnfx.lower(bnn, (x,)))
    assert [row.name for row in explained.layers if row.packed] == ["block.conv1", "block.conv2", "down", "hidden"]
    costs = {row.name: row for row in bnnfx.summary(bnn, (x,)).layers}
    assert costs["down"].cost.binary_macs == 2 * 3 * 6 * 12 * 8 * 4
    assert costs["down"].cost.packed_bytes == 12 * 4 * 8 + 12 * 4  # a row of bits per tap, and the biases
    assert (
        set(quantization_error(bnn).layers)
        == set(FlipRate(bnn).per_layer())
        == {
            "block.conv1",
            "block.conv2",
            "down",
            "hidden",
        }
    )


@pytest.mark.usefixtures("registered")
def test_shortcuts_and_refusals():
    bnn = bnnfx.convert(Rows(), "bireal")
    assert any(log.name == "AddShortcutPerConvolution" and log.applied for log in bnnfx.explain(bnn).passes)
    model = Rows()
    model.down.kernel_size = (2, 1, 2)
    config = Config(layers={nn.Conv3d: LayerConfig(binarize=True)})
    (said, *_) = bnnfx.explain(bnnfx.convert(model, "bireal", config=config))["down"].findings
    assert (said.reason, said.remedy) == ("its kernel is no row", "give a row")


class Threshold(SignActivation):
    """Compares with another number in every channel of `[N, T, C]`."""

    def __init__(self) -> None:
        super().__init__(approx_sign)
        self.level = nn.Parameter(torch.linspace(-0.5, 0.5, 70))

    def binarize(self, x: Tensor) -> Tensor:
        return sign(x - self.level, approx_sign, decision=torch.where(x >= self.level, 1.0, -1.0))

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        return self.level.reshape(*(1,) * (rank - 1), -1)


class Centred(SignActivation):
    """Compares with the mean of all tokens of a sample."""

    pointwise = False

    def __init__(self) -> None:
        super().__init__(approx_sign)

    def binarize(self, x: Tensor) -> Tensor:
        return sign(x, approx_sign, decision=x - self.threshold(x, x.ndim))

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        return x.mean(dim=tuple(range(1, rank)), keepdim=True)


@pytest.mark.parametrize("binarizer", [Threshold, Centred])
def test_linear_layers_on_tokens(binarizer, tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(70, 70), nn.LayerNorm(70), nn.Linear(70, 9)), torch.randn(2, 5, 70)
    bnn = bnnfx.convert(model, "bireal", example_inputs=(x,), config=Config(keep_float=())).eval()
    edit.replace_module(bnn, "2_sign", binarizer())
    packed = bnnfx.lower(bnn, (x[:1],))
    assert bnnfx.verify(bnn, packed, (x,))
    assert bnnfx.verify(packed, bnnfx.export_onnx(packed, tmp_path / "tokens.onnx"), (x,))


def test_without_it_the_layers_stay_float():
    assert layer_kind(along(8, 8, 3)) is None
    explained = bnnfx.explain(bnnfx.convert(Rows(), "bireal", config=Config(keep_float=())))
    assert [row.name for row in explained.layers if row.binarized] == ["hidden", "head"]
    assert "Conv3d is not supported" in explained["down"].findings[0].reason


def test_second_kind_for_a_float_layer_is_refused():
    with pytest.raises(ValueError, match="BinaryConv2d is registered already for Conv2d"):
        register_layer(nn.Conv2d)(BinaryRows)
    assert BINARY_LAYERS[nn.Conv2d] is BinaryConv2d
