"""`lower`: the bits of the packed graph are the bits of the trainable one, for every input, in every chain."""

import copy
import operator
import pickle
import random
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import bnnfx
from bnnfx import Config, ConversionError, ExampleInputError, StageError
from bnnfx.graph.record import record_of
from bnnfx.graph.stage import Stage
from bnnfx.nn import BinaryConv2d
from bnnfx.verification.bit_trace import BitTrace, trace_bits
from bnnfx.verification.comparison import compare

EVERYTHING = Config(keep_float=())
NAN = float("nan")


# --- random chains: a model, how its batch norms are set, an input; all from one seed ---


def random_model(r: random.Random) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """Convolutions and linear layers with batch norm, pooling, activations and dropout between; the input's shape."""
    channels, rows, columns = r.choice([1, 2, 3, 5, 8, 17, 65]), r.randint(3, 11), r.randint(3, 11)
    shape = (channels, rows, columns)
    layers: list[nn.Module] = []
    if r.random() < 0.85:
        for _ in range(r.randint(1, 4)):
            convolution = random_convolution(r, channels)
            try:
                _, channels, rows, columns = convolution(torch.zeros(1, channels, rows, columns)).shape
            except RuntimeError:
                continue  # larger than the map
            norm = nn.BatchNorm2d(channels, affine=r.random() < 0.9)
            epilogue = [norm, *random_extras(r, channels)]
            epilogue += [random_pool(r) for _ in range(r.choice([0, 0, 1, 1, 2]))]
            r.shuffle(epilogue)
            layers.append(convolution)
            for module in epilogue:
                try:
                    after = module.eval()(torch.zeros(1, channels, rows, columns))
                except RuntimeError:
                    continue  # a pool larger than the map
                if after.isfinite().all():  # a dilated pool can see nothing but padding
                    rows, columns = after.shape[2:]
                    layers.append(module.train())
    if not layers or r.random() < 0.5:
        features = channels * rows * columns
        layers.append(nn.Flatten())
        if r.random() < 0.3:
            layers.append(r.choice([nn.BatchNorm1d(features), nn.Hardtanh()]))
        for _ in range(r.randint(1, 3)):
            out = r.choice([1, 5, 64, 70])
            epilogue = [nn.BatchNorm1d(out), *random_extras(r, out)]
            r.shuffle(epilogue)
            layers += [nn.Linear(features, out, bias=r.random() < 0.5), *epilogue]
            features = out
        layers.append(nn.Linear(features, 4))
    return nn.Sequential(*layers), shape


def random_convolution(r: random.Random, channels: int) -> nn.Conv2d:
    groups = r.choice([1, 1, 1, channels]) if channels < 20 else 1
    out = groups * r.choice([1, 3, 7, 64, 67] if groups < 4 else [1, 2])
    kernel, dilation = (r.randint(1, 5), r.randint(1, 5)), (r.randint(1, 2), r.randint(1, 2))
    stride, padding = (r.randint(1, 2), r.randint(1, 2)), r.choice([0, 1, 2, (1, 0), "valid", "same"])
    if padding == "same":
        stride, kernel = (1, 1), (kernel[0] | 1, kernel[1] | 1)
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=r.random() < 0.5)


def random_pool(r: random.Random) -> nn.MaxPool2d:
    kernel = r.randint(1, 3)
    return nn.MaxPool2d(
        kernel, r.randint(1, 2), r.randint(0, kernel // 2), r.choice([1, 1, 2]), ceil_mode=r.random() < 0.5
    )


def random_extras(r: random.Random, channels: int) -> list[nn.Module]:
    activations = [nn.Hardtanh(), nn.Hardtanh(-0.5, 2.0), nn.PReLU(channels), nn.LeakyReLU(0.1), nn.ELU(), nn.Tanh()]
    picked = [r.choice(activations)] if r.random() < 0.3 else []
    return [*picked, r.choice([nn.Dropout(), nn.Identity()])] if r.random() < 0.2 else picked


def scatter_parameters(gm: fx.GraphModule, generator: torch.Generator) -> None:
    """Batch norms with gamma of both signs and 0, var from 1e-6 to 1e6; PReLU slopes."""
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n = module.num_features
            module.running_var.copy_(10 ** (torch.rand(n, generator=generator) * 12 - 6))
            module.running_mean.copy_(torch.randn(n, generator=generator) * 3)
            if module.affine:
                nonzero = torch.randint(0, 5, (n,), generator=generator) > 0
                module.weight.data.copy_(torch.randn(n, generator=generator) * nonzero)
                module.bias.data.copy_(torch.randn(n, generator=generator))


def scatter_dyadic_parameters(gm: fx.GraphModule, generator: torch.Generator) -> None:
    """Numbers of few bits, so that no operation rounds and batch norms give exactly 0 for some accumulators."""
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n, module.eps = module.num_features, 0.0
            module.running_var.copy_(torch.tensor([0.25, 1.0, 4.0])[torch.randint(0, 3, (n,), generator=generator)])
            module.running_mean.copy_(torch.randint(-3, 4, (n,), generator=generator) / 2)
            if module.affine:
                gamma = torch.tensor([1.0, -1.0, 0.0, 0.5])
                module.weight.data.copy_(gamma[torch.randint(0, 4, (n,), generator=generator)])
                module.bias.data.zero_()
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator).sub(0.5).sign() / 2)
            if module.bias is not None:
                module.bias.data.copy_(torch.randint(-2, 3, module.bias.shape, generator=generator) / 2)


def random_case(seed: int) -> tuple[fx.GraphModule, Tensor]:
    r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    gm, shape = None, (0, 0, 0)
    while gm is None:
        model, shape = random_model(r)
        scheme = r.choice(["bireal", "rbnn", "xnor"])
        config = Config(keep_float=r.choice([(), ("last",), ("first", "last")]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a prime fan-in
                gm = bnnfx.convert(model, scheme, config=config)
        except bnnfx.ConversionError:
            continue  # nothing left to binarize
    # bireal's scale is the mean magnitude, 1/2 without rounding
    dyadic = scheme == "bireal" and r.random() < 0.7
    (scatter_dyadic_parameters if dyadic else scatter_parameters)(gm, generator)
    x = torch.randn(r.choice([1, 3]), *shape, generator=generator)
    special = torch.randint(0, 12, x.shape, generator=generator)
    x[special == 0], x[special == 1] = 0.0, -0.0
    if r.random() < 0.3:
        x[special == 2] = NAN
    if r.random() < 0.2:
        x = x.contiguous(memory_format=torch.channels_last)
    return gm.train(r.random() < 0.5), x


def assert_same_bits(a: BitTrace, b: BitTrace, at: str = "") -> None:
    """Every binarizer of `a` is one of `b`, with the same bits; outputs agree up to rounding."""
    assert a.bits and set(a.bits) <= set(b.bits), (at, list(a.bits), list(b.bits))
    for name, expected in a.bits.items():
        given = b.bits[name]
        assert given.bits.shape == expected.bits.shape, (at, name)
        assert int((given.bits != expected.bits).sum()) == 0, (at, name)
    for output in compare(a, b).outputs:
        assert output.difference <= output.bound, (at, output)


@pytest.mark.parametrize("block", range(4))
def test_bits_of_random_chains(block: int) -> None:
    met: Counter[str] = Counter()
    for seed in range(block * 40, block * 40 + 40):
        gm, x = random_case(seed)
        packed = bnnfx.lower(gm, (x,))
        trainable, lowered = trace_bits(gm, (x,)), trace_bits(packed, (x,))
        assert_same_bits(trainable, lowered, f"seed {seed}")
        pooled = [n for n in packed.graph.nodes if n.target is torch.ops.bnnfx.max_pool2d.default]
        met["ties"] += sum(int((bits.compared == 0).sum()) for bits in trainable.bits.values())  # type: ignore[union-attr]
        met["NaN"] += int(x.isnan().any())
        met["integer thresholds"] += sum(lowered.bits[name].compared is None for name in trainable.bits)
        met["float thresholds"] += sum(lowered.bits[name].compared is not None for name in trainable.bits)
        met["pools of bits"] += len(pooled)
        met["pools by AND"] += sum(bool(packed.get_buffer(str(n.args[1].target)).any()) for n in pooled)
    assert len(met) == 6 and min(met.values()) > 0, met


@pytest.mark.parametrize("fault", ["threshold", "flip", "and_mask", "weight_bits"])
def test_one_wrong_constant_is_noticed(fault: str) -> None:
    """The comparison of the random chains fails where one constant of the packed graph is wrong."""
    gm = vgg_order([1.0, -1.0, 0.0, 2.0])
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    packed = bnnfx.lower(gm, (x,))
    assert_same_bits(trace_bits(gm, (x,)), trace_bits(packed, (x,)))
    buffer = next(b for n, b in packed.named_buffers() if n.endswith(fault) and b.dtype != torch.float32)
    buffer.view(-1)[0] += 2 if fault == "threshold" else 1
    with pytest.raises(AssertionError):
        assert_same_bits(trace_bits(gm, (x,)), trace_bits(packed, (x,)))


# --- hazards, one by one ---


def set_norm(norm: nn.Module, gamma: list[float], mean: float = 0.0) -> None:
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    norm.eps = 0.0
    norm.running_mean.fill_(mean)
    norm.weight.data.copy_(torch.tensor(gamma))


def vgg_order(gamma: list[float]) -> fx.GraphModule:
    """conv, pool, batch norm, sign: the pool stands in front of the batch norm, whose gamma may be negative."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.Flatten()
    )
    gm = bnnfx.convert(model, "bireal", config=EVERYTHING)
    set_norm(gm.get_submodule("2"), gamma)
    return gm.eval()


@pytest.mark.parametrize("value", [0.0, -0.0, NAN, float("inf"), -float("inf"), 1e-45, -1e-45])
def test_special_inputs(value: float) -> None:
    gm = bnnfx.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "bireal", config=EVERYTHING).eval()
    x = torch.full((1, 3, 5, 5), value)
    packed = bnnfx.lower(gm, (x,))
    trainable, lowered = trace_bits(gm, (x,)), trace_bits(packed, (x,))
    assert_same_bits(trainable, lowered)
    (bits,) = [item.bits for item in lowered.bits.values()]
    assert bits.all() if value >= 0 else not bits.any()


@pytest.mark.parametrize("gamma", [1.0, -1.0])
def test_accumulator_exactly_on_the_threshold(gamma: float) -> None:
    """`gamma * (scale * z - mean)` is exactly 0 at z = 2, where the bit is 1; it turns at the next z on one side."""
    model = nn.Sequential(nn.Conv2d(8, 1, 1, bias=False), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1), nn.Flatten())
    gm = bnnfx.convert(model, "bireal", config=EVERYTHING).eval()
    gm.get_submodule("0").weight.data.fill_(0.5)  # type: ignore[union-attr, operator]
    set_norm(gm.get_submodule("1"), [gamma], mean=1.0)
    # accumulators -8, -6, .. 8
    x = torch.tensor([[1.0] * k + [-1.0] * (8 - k) for k in range(9)])[:, :, None, None]
    packed = bnnfx.lower(gm, (x,))
    trainable, lowered = trace_bits(gm, (x,)), trace_bits(packed, (x,))
    assert_same_bits(trainable, lowered)
    second = lowered.bits["_2_sign"].bits.flatten()
    z = np.arange(-8, 9, 2)
    assert (second == (z >= 2 if gamma > 0 else z <= 2)).all()


@pytest.mark.parametrize("gamma", [[1, 2, 3, 4], [-1, -2, -3, -4], [0, 0, 0, 0], [1, -1, 0, -2]])
def test_pool_before_batchnorm_with_every_sign_of_gamma(gamma: list[float]) -> None:
    gm = vgg_order(gamma)
    x = torch.randn(3, 3, 9, 8, generator=torch.Generator().manual_seed(2))
    packed = bnnfx.lower(gm, (x,))
    assert torch.ops.bnnfx.max_pool2d.default in {node.target for node in packed.graph.nodes}
    assert_same_bits(trace_bits(gm, (x,)), trace_bits(packed, (x,)))


@pytest.mark.parametrize("between", [nn.BatchNorm1d(63), nn.Hardtanh()], ids=["batch norm", "clamp"])
@pytest.mark.parametrize("pool", [False, True])
def test_flattened_map_in_front_of_a_batchnorm(between: nn.Module, pool: bool) -> None:
    """Behind the flatten every position is a channel of its own: no threshold per filter stands for that."""
    head = nn.Conv2d(3, 7, 3, padding=1 if pool else 0)
    pools = [nn.MaxPool2d((2, 2), ceil_mode=True)] if pool else []
    size = 6 if pool else 5
    model = nn.Sequential(head, *pools, nn.Flatten(), copy.deepcopy(between), nn.Linear(63, 4))
    gm = bnnfx.convert(model, "bireal", config=EVERYTHING)
    scatter_parameters(gm, torch.Generator().manual_seed(3))
    x = torch.randn(2, 3, size, size)
    assert_same_bits(trace_bits(gm, (x,)), trace_bits(bnnfx.lower(gm, (x,)), (x,)))


def test_pool_to_one_pixel_then_flatten() -> None:
    """The flatten is a mere view only behind the pool, so the pool may not move past it."""
    layers = [nn.Conv2d(3, 7, 3), nn.MaxPool2d(3), nn.Flatten(), nn.BatchNorm1d(7), nn.Linear(7, 4)]
    gm = bnnfx.convert(nn.Sequential(*layers), "bireal", config=EVERYTHING)
    scatter_parameters(gm, torch.Generator().manual_seed(4))
    x = torch.randn(5, 3, 5, 5)
    assert_same_bits(trace_bits(gm, (x,)), trace_bits(bnnfx.lower(gm, (x,)), (x,)))


class Rank3(nn.Module):
    """Linear layers over the last axis of (N, L, C)."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.a, self.between, self.b = nn.Linear(10, 6), between, nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


@pytest.mark.parametrize("between", [nn.BatchNorm1d(7), nn.Sequential(nn.BatchNorm1d(7), nn.Hardtanh())])
def test_linear_on_rank_3(between: nn.Module) -> None:
    """The batch norm runs over the middle axis, which the packed layer does not know."""
    gm = bnnfx.convert(Rank3(between), "bireal", config=Config(keep_float=("last",)))
    scatter_parameters(gm, torch.Generator().manual_seed(5))
    x = torch.randn(3, 7, 10)
    packed = bnnfx.lower(gm, (x,))
    assert_same_bits(trace_bits(gm, (x,)), trace_bits(packed, (x,)))
    assert packed(x).shape == (3, 7, 5)


class SharedLayer(nn.Module):
    """One binary convolution, called twice, with one batch norm per call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 3, padding=1)
        self.bn1, self.bn2, self.head = nn.BatchNorm2d(5), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn2(self.conv(self.bn1(self.conv(x)))))


def test_layer_called_twice() -> None:
    gm = bnnfx.convert(SharedLayer(), "xnor", config=EVERYTHING)
    scatter_parameters(gm, torch.Generator().manual_seed(6))
    x = torch.randn(2, 5, 6, 7)
    packed = bnnfx.lower(gm, (x,))
    trainable, lowered = trace_bits(gm, (x,)), trace_bits(packed, (x,))
    assert len(trainable.bits) == 3
    assert_same_bits(trainable, lowered)


class Residual(nn.Module):
    """A float stream with two readers, one of which is a sign."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9)
        self.conv, self.bn = nn.Conv2d(9, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x))
        x = self.bn(self.conv(x)) + x
        return self.head(x.mean((2, 3)))


class TwoByTwo(nn.Module):
    """Two inputs, and two outputs under names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        z = self.a(x) + self.b(y)
        return {"logits": self.head(z).flatten(1), "sum": z}


def test_several_inputs_and_outputs() -> None:
    gm = bnnfx.convert(TwoByTwo(), "rbnn", config=EVERYTHING).eval()
    inputs = torch.randn(3, 3, 7, 8), torch.randn(3, 2, 7, 8)
    packed = bnnfx.lower(gm, inputs)
    assert_same_bits(trace_bits(gm, inputs), trace_bits(packed, inputs))
    assert list(packed(*inputs)) == ["logits", "sum"]


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_dynamic_batch(batch: int) -> None:
    gm = bnnfx.convert(Residual(), "bireal").eval()
    packed = bnnfx.lower(gm, (torch.randn(2, 3, 8, 9),))
    assert packed(torch.randn(batch, 3, 8, 9)).shape == (batch, 4)


def test_the_trainable_graph_is_not_changed() -> None:
    gm = bnnfx.convert(Residual(), "xnor")
    code, state = gm.code, {name: value.clone() for name, value in gm.state_dict().items()}
    needs = [p.requires_grad for p in gm.parameters()]
    bnnfx.lower(gm, (torch.randn(2, 3, 8, 9),))
    assert gm.code == code and gm.training and [p.requires_grad for p in gm.parameters()] == needs
    assert record_of(gm).stage is Stage.TRAINABLE  # type: ignore[union-attr]
    assert all(torch.equal(value, state[name]) for name, value in gm.state_dict().items())


@pytest.mark.parametrize("scheme", ["bireal", "rbnn", "xnor"])
def test_training_mode_does_not_matter(scheme: str) -> None:
    gm = bnnfx.convert(Residual(), scheme)
    x = torch.randn(2, 3, 8, 9)
    from_training, from_evaluation = bnnfx.lower(gm.train(), (x,)), bnnfx.lower(gm.eval(), (x,))
    assert from_training.code == from_evaluation.code
    a, b = from_training.state_dict(), from_evaluation.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert not from_training.training and not any(p.requires_grad for p in from_training.parameters())


def test_train_does_not_bring_training_back() -> None:
    gm = vgg_order([1, -1, 0, 2])
    x = torch.randn(3, 3, 9, 8)
    packed = bnnfx.lower(gm, (x,))
    expected = packed(x)
    assert torch.equal(packed.train()(x), expected)
    residual = bnnfx.lower(bnnfx.convert(Residual(), "xnor"), (torch.randn(2, 3, 8, 9),))
    y = torch.randn(2, 3, 8, 9)
    assert torch.equal(residual.eval()(y), residual.train()(y))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_trained_in_another_type(dtype: torch.dtype) -> None:
    """The packed graph computes what the trainable one computes in float32."""
    gm = bnnfx.convert(Residual().to(dtype), "bireal").eval()
    x = torch.randn(2, 3, 8, 9)
    packed = bnnfx.lower(gm, (x,))
    assert {t.dtype for t in (*packed.parameters(), *packed.buffers()) if t.is_floating_point()} == {torch.float32}
    assert_same_bits(trace_bits(copy.deepcopy(gm).float(), (x,)), trace_bits(packed, (x,)))


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda gm: pickle.loads(pickle.dumps(gm))], ids=["deepcopy", "pickle"]
)
def test_copies_of_the_packed_graph(again: Callable[[fx.GraphModule], fx.GraphModule], tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 9)
    packed = bnnfx.lower(bnnfx.convert(Residual(), "rbnn"), (x,))
    clone = again(packed)
    assert clone is not packed and torch.equal(clone(x), packed(x))
    assert record_of(clone).stage is Stage.PACKED  # type: ignore[union-attr]
    assert bnnfx.verify(clone, bnnfx.export_onnx(clone, tmp_path / "m.onnx"), (x,))


def test_torch_export_with_a_free_batch() -> None:
    x = torch.randn(2, 3, 8, 9)
    packed = bnnfx.lower(bnnfx.convert(Residual(), "rbnn"), (x,))
    program = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 2, 5):
        y = torch.randn(batch, 3, 8, 9)
        assert torch.equal(program.module()(y), packed(y))


# --- what a scheme leaves behind ---


def three_layers(scheme: str, **options: Any) -> fx.GraphModule:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(3) for m in (nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))), nn.Flatten())
    gm = bnnfx.convert(model, scheme, config=Config(keep_float=(), options=options)).eval()
    scatter_parameters(gm, torch.Generator().manual_seed(7))
    return gm


def test_rotation_is_gone(tmp_path: Path) -> None:
    """Identity 13: no R1, R2, beta in graph or file, and the bits are those of (w, R1, R2, beta)."""
    gm = three_layers("rbnn")
    x = torch.randn(2, 16, 9, 9)
    assert sum(name.endswith((".r1", ".r2", ".beta")) for name in gm.state_dict()) == 9
    rotation_sizes = {value.numel() for name, value in gm.state_dict().items() if name.endswith((".r1", ".r2"))}
    assert rotation_sizes == {144}
    packed = bnnfx.lower(gm, (x,))
    path = bnnfx.export_onnx(packed, tmp_path / "m.onnx")
    initializers = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    tensors = {**packed.state_dict(), **initializers}
    assert not [name for name in tensors if any(word in name.lower() for word in ("r1", "r2", "beta", "rot"))]
    assert not [name for name, value in tensors.items() if np.asarray(value).size in rotation_sizes]
    # a float tensor holds one value per channel; what is larger is bits
    assert all(np.asarray(v).size <= 16 for v in tensors.values() if np.asarray(v).dtype == np.float32)
    layer = gm.get_submodule("2")
    assert isinstance(layer, BinaryConv2d)
    signs, _ = layer.binary_weight()
    expected = (signs > 0).permute(0, 2, 3, 1).numpy()
    bits = np.unpackbits(packed.get_buffer("2_weight_bits").numpy(), axis=-1, bitorder="little", count=16)
    assert (bits == expected).all()
    assert int((expected != (layer.weight > 0).permute(0, 2, 3, 1).numpy()).sum()) > 0, "the rotation changes bits"
    assert_same_bits(trace_bits(gm, (x,)), trace_bits(packed, (x,)))


def means(packed: fx.GraphModule) -> list[fx.Node]:
    return [n for n in packed.graph.nodes if n.target in ("mean", torch.mean)]


def test_centring_stays_one_mean_per_layer(tmp_path: Path) -> None:
    """Identity 14: one mean per binary layer, in graph and file; without it the outputs are others."""
    gm = three_layers("rbnn", centre=True)
    x = torch.randn(2, 16, 9, 9) + 0.5
    packed = bnnfx.lower(gm, (x,))
    assert len(means(packed)) == 3
    file = onnx.load(bnnfx.export_onnx(packed, tmp_path / "m.onnx"))
    assert sum(node.op_type == "ReduceMean" for node in file.graph.node) == 3
    assert bnnfx.verify(gm, packed, (x,)) and bnnfx.verify(packed, tmp_path / "m.onnx", (x,))
    expected = packed(x)
    for node in means(packed):
        with packed.graph.inserting_after(node):
            nothing = packed.graph.call_function(operator.mul, (node, 0.0))
        node.replace_all_uses_with(nothing, delete_user_cb=lambda user, new=nothing: user is not new)
    packed.recompile()
    assert not torch.equal(packed(x), expected)


def test_without_centring_there_is_no_mean(tmp_path: Path) -> None:
    packed = bnnfx.lower(three_layers("rbnn"), (torch.randn(2, 16, 9, 9),))
    assert not means(packed)
    file = onnx.load(bnnfx.export_onnx(packed, tmp_path / "m.onnx"))
    assert not [node for node in file.graph.node if node.op_type == "ReduceMean"]


def test_nothing_elementwise_is_left_in_a_chain() -> None:
    packed = bnnfx.lower(three_layers("xnor"), (torch.randn(2, 16, 9, 9),))
    called = [str(node.target) for node in packed.graph.nodes if node.op.startswith("call")]
    assert [name.split(".")[1] if "." in name else name for name in called[:4]] == [
        "pack",
        "binary_conv2d_threshold",
        "binary_conv2d_threshold",
        "binary_conv2d_float",
    ]
    assert called[4:] == [str(torch.permute), str(torch.flatten)]  # the flattened order is that of channels first


# --- refusals ---


def test_wrong_stage() -> None:
    x = torch.randn(1, 3, 8, 9)
    packed = bnnfx.lower(bnnfx.convert(Residual(), "xnor"), (x,))
    with pytest.raises(StageError, match=r"trainable, which bnnfx\.convert returns; got a graph in stage packed"):
        bnnfx.lower(packed, (x,))
    with pytest.raises(StageError, match=r"bnnfx\.convert returns; got a Residual"):
        bnnfx.lower(Residual(), (x,))  # type: ignore[arg-type]
    with pytest.raises(StageError, match=r"bnnfx\.convert returns; got a Residual"):
        bnnfx.lower(fx.symbolic_trace(Residual()), (x,))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(1, 3, 8, 9), r"a tuple of tensors .* such as \(x,\); got Tensor"),
        ((), r"takes 1 input\(s\) \(x\); example_inputs has 0"),
        ((torch.zeros(1, 3, 8, 9),) * 2, r"takes 1 input\(s\) \(x\); example_inputs has 2"),
        ((torch.zeros(1, 4, 8, 9),), r"'stem' \(stem\) cannot take x \[1, 4, 8, 9\]"),
        ((torch.zeros(1, 3, 8, 9, dtype=torch.float64),), "'stem'"),
        ((None,), r"such as \(x,\); got \(NoneType\)"),
        ((torch.tensor(1.0),), r"first axis is the batch"),
    ],
    ids=["no tuple", "too few", "too many", "channels", "type", "no tensor", "no batch"],
)
def test_wrong_example_inputs(inputs: Any, message: str) -> None:
    gm = bnnfx.convert(Residual(), "xnor")
    with pytest.raises(ExampleInputError, match=message):
        bnnfx.lower(gm, inputs)


def test_examples_without_values_are_enough():
    x = torch.randn(2, 3, 9, 9)
    gm = bnnfx.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)).eval(), "xnor")
    packed, of_shapes = bnnfx.lower(gm, (x,)), bnnfx.lower(gm, (x.to("meta"),))
    assert torch.equal(packed(x), of_shapes(x))


def test_weights_without_values():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)).eval()
    gm = bnnfx.convert(copy.deepcopy(model).to("meta"), "xnor")
    with pytest.raises(ConversionError, match=r"'0\.weight' has no values"):
        bnnfx.lower(gm, (torch.zeros(1, 3, 9, 9),))
    gm.load_state_dict(bnnfx.convert(model, "xnor").state_dict(), assign=True)
    assert bnnfx.lower(gm, (torch.zeros(1, 3, 9, 9),))(torch.zeros(1, 3, 9, 9)).shape == (1, 4, 5, 5)
