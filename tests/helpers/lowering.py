"""One pass of `lower` at a time, on a trainable graph whose batch norms are worth folding."""

import copy
import warnings
from typing import Any

import torch
from torch import fx, nn

import bnnfx
from bnnfx import Config
from bnnfx.graph.context import LowerContext
from bnnfx.graph.pass_runner import run_passes
from bnnfx.graph.record import attach, record_of
from bnnfx.graph.shapes import infer_shapes
from bnnfx.passes.lower.fuse_epilogue_into_convolution import FuseEpilogueIntoConvolution
from bnnfx.pipelines import LOWER
from bnnfx.verification.bit_trace import trace_bits
from bnnfx.verification.comparison import compare
from helpers.graphs import Ran, text


def trainable(
    model: nn.Module, scheme: str = "bireal", *, keep_float: tuple[str, ...] = (), **options: Any
) -> fx.GraphModule:
    """All layers binary but `keep_float`, gamma of both signs and 0, statistics unlike those of a new batch norm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prime fan-in
        gm = bnnfx.convert(model, scheme, config=Config(keep_float=keep_float, options=options, adapt=())).eval()
    generator = torch.Generator().manual_seed(0)
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            n = module.num_features
            module.running_mean.copy_(torch.randn(n, generator=generator))
            module.running_var.copy_(torch.rand(n, generator=generator) + 0.1)
            if module.affine:
                module.weight.data.copy_(torch.randn(n, generator=generator) * (torch.arange(n) % 3 > 0))
                module.bias.data.copy_(torch.randn(n, generator=generator))
    return gm


def short(gm: fx.GraphModule) -> str:
    """`text` without the lines that only read a constant."""
    constants = {node.name for node in gm.graph.nodes if node.op == "get_attr"}
    kept = [line for line in text(gm).splitlines() if line.split(" =")[0] not in constants]
    return "\n".join(kept).replace(".default(", "(")


def run_lower_pass(kind: Any, gm: fx.GraphModule, *inputs: torch.Tensor) -> Ran:
    """Run the passes of `lower` in front of `kind`, then `kind` alone; values and bits must stay what they were."""
    packed = copy.deepcopy(gm).requires_grad_(False)
    record = record_of(gm).continued()  # type: ignore[union-attr]
    context = LowerContext(inputs, infer_shapes(packed, inputs))
    run_passes(packed, LOWER[: LOWER.index(kind)], context, record)
    before, unchanged = short(packed), packed(*inputs)
    run_passes(packed, (kind,), context, record)
    torch.testing.assert_close(packed(*inputs), unchanged, rtol=1e-5, atol=1e-5 * float(unchanged.abs().max()))
    return Ran(before, short(packed), record.reports[-1], packed, context)  # type: ignore[arg-type]


def assert_lowers_exactly(gm: fx.GraphModule, *inputs: torch.Tensor) -> None:
    """The whole pipeline keeps every bit."""
    expected, given = trace_bits(gm, inputs), trace_bits(bnnfx.lower(gm, inputs, check=False), inputs)
    assert expected.bits and set(expected.bits) <= set(given.bits)
    assert [name for name, item in expected.bits.items() if (item.bits != given.bits[name].bits).any()] == []


def unfused(gm: fx.GraphModule, *inputs: torch.Tensor) -> fx.GraphModule:
    """The packed graph before anything is fused or moved to channels last."""
    packed = copy.deepcopy(gm).requires_grad_(False)
    record = record_of(gm).continued()  # type: ignore[union-attr]
    record.inputs = tuple((x.shape, x.dtype) for x in inputs)
    run_passes(
        packed,
        LOWER[: LOWER.index(FuseEpilogueIntoConvolution)],
        LowerContext(inputs, infer_shapes(packed, inputs)),
        record,
    )
    attach(packed, record)
    return packed


def assert_fuses_exactly(gm: fx.GraphModule, *inputs: torch.Tensor, exact: bool = True) -> fx.GraphModule:
    """Lowered on one sample, run on all of `inputs`: the last two passes change no bit and no float; the packed graph.

    Where a matrix product stands for a convolution, or a mean adds up in another order (`exact=False`), what differs
    must be explained by rounding.
    """
    one = tuple(x[:1] for x in inputs)
    packed = bnnfx.lower(gm, one, check=False)
    before, after = trace_bits(unfused(gm, *one), inputs), trace_bits(packed, inputs)
    assert before.bits and list(before.bits) == list(after.bits)
    if exact:
        for name, expected in before.bits.items():
            assert int((expected.bits != after.bits[name].bits).sum()) == 0, name
        for expected, given in zip(before.outputs, after.outputs, strict=True):
            assert given.shape == expected.shape and (given == expected).all()
    else:
        before.constants.clear()  # a matrix has other ones
        result = compare(before, after)
        assert result, str(result)
    against = bnnfx.verify(gm, packed, inputs)
    assert against, str(against)
    return packed


def called(gm: fx.GraphModule) -> list[str]:
    """What is called, in order: operators without the picking of their results, and modules by kind."""
    lines = [line.split(" = ", 1)[1] for line in short(gm).splitlines() if " = " in line]
    names = [line.split("(")[0].split()[0] for line in lines if not line.startswith(("input", "getitem"))]
    return [name.removeprefix("bnnfx.").removeprefix("binary_conv2d_") for name in names]
