"""Whole networks of torchvision at 224 x 224, from the float model to the file and back."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import bnnfx
from bnnfx._torchvision import import_torchvision
from bnnfx.verification.bit_trace import trace_bits

NETWORKS = ("resnet18", "vgg11_bn", "alexnet")


@pytest.fixture(scope="module")
def torchvision() -> object:
    try:
        return import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two test processes with two threads each wait for one another on two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Chain:
    gm: fx.GraphModule
    packed: fx.GraphModule
    path: Path
    x: Tensor
    seconds: float


def run_chain(torchvision: object, network: str, scheme: str, folder: Path) -> Chain:
    """Convert, scatter gamma, calibrate on one batch, lower, export; the time of convert, lower and export."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, network)()  # type: ignore[attr-defined]
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prime fan-in
        gm = bnnfx.convert(model, scheme)
    seconds = time.perf_counter() - start
    generator = torch.Generator().manual_seed(2)
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data.copy_(torch.randn(module.num_features, generator=generator))
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator))
    bnnfx.calibrate(gm.eval(), [torch.randn(2, 3, 224, 224, generator=generator)])
    start = time.perf_counter()
    packed = bnnfx.lower(gm, (x,))
    path = bnnfx.export_onnx(packed, folder / f"{network}.onnx")
    return Chain(gm, packed, path, x, seconds + time.perf_counter() - start)


@pytest.mark.parametrize("shaped", [False, True])
def test_linear_layers_on_maps(torchvision: object, shaped: bool) -> None:
    """ConvNeXt's work on [N, H, W, C]: they are binary, and its depthwise convolutions are not."""
    model = torchvision.models.convnext_tiny()  # type: ignore[attr-defined]
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    gm = bnnfx.convert(model, "bireal", example_inputs=(x,) if shaped else None).eval()
    layers = bnnfx.explain(gm).layers
    inside = [layer for layer in layers if layer.kind == "Linear" and layer.name != "classifier.2"]
    depthwise = [layer for layer in layers if layer.name.endswith("block.0")]
    assert len(inside) == 36 and all(layer.binarized for layer in inside)
    assert len(depthwise) == 18 and not any(layer.binarized for layer in depthwise)
    packed = bnnfx.lower(gm, (x,))
    assert packed(x).shape == gm(x).shape == (1, 1000)


@pytest.mark.parametrize(("network", "options"), [("swin_t", {}), ("vit_b_16", {"image_size": 64})])
def test_transformer(torchvision: object, network: str, options: dict[str, int]) -> None:
    """All but the first layer and the last is binary, by far the most multiply-accumulates outside of attention."""
    model = torchvision.models.get_model(network, weights=None, **options)  # type: ignore[attr-defined]
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    gm = bnnfx.convert(model, "bireal", example_inputs=(x,)).eval()
    floats = [layer.name for layer in bnnfx.explain(gm).layers if not layer.binarized]
    assert len(floats) == 2 and floats[-1] in ("head", "heads.head")
    totals = bnnfx.summary(gm, (x,)).totals
    assert totals.binary_macs > 0.9 * (totals.binary_macs + totals.float_macs)
    bnnfx.lower(gm, (x,))


@pytest.mark.parametrize("scheme", ["bireal", "rbnn", "xnor"])
@pytest.mark.parametrize("network", NETWORKS)
def test_network(
    torchvision: object, network: str, scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = run_chain(torchvision, network, scheme, tmp_path)
    with capsys.disabled():
        print(f"\n{network} {scheme}: {chain.seconds:.1f} s, {chain.path.stat().st_size / 1e6:.2f} MB")
    packed = trace_bits(chain.packed, (chain.x,))
    for kernels in (True, False):
        result = bnnfx.verify(chain.packed, chain.path, (chain.x,), kernels=kernels)
        assert result, str(result)
    assert len(result.nodes) == len(packed.bits) > 4 and sum(node.total for node in result.nodes) > 100_000
    assert bnnfx.load(chain.path).run(chain.x).shape == (1, 1000)  # type: ignore[union-attr]
    against = bnnfx.verify(chain.gm, chain.packed, (chain.x,))
    assert against, str(against)
    if network != "resnet18":  # no float stream between binary layers: no bit may differ
        assert against.differing_bits == 0, str(against)
    if (network, scheme) == ("resnet18", "rbnn"):
        assert chain.path.stat().st_size <= 4.4e6
