"""One pass of `lower` at a time, on a trainable graph whose batch norms are worth folding."""

import copy
import warnings
from typing import Any

import torch
from graphs import Ran, text
from torch import fx, nn

import bnnfx
from bnnfx import Config
from bnnfx.core.context import LowerContext
from bnnfx.core.passes import run_passes
from bnnfx.core.record import record_of
from bnnfx.core.shapes import infer_shapes
from bnnfx.inspect.bit_trace import trace_bits
from bnnfx.pipelines import LOWER


def trainable(model: nn.Module, scheme: str = "bireal", **options: Any) -> fx.GraphModule:
    """All layers binary, gamma of both signs and 0, statistics that are not those of a new batch norm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prime fan-in
        gm = bnnfx.convert(model, scheme, config=Config(keep_float=(), options=options)).eval()
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
    context = LowerContext(infer_shapes(packed, inputs))
    run_passes(packed, LOWER[: LOWER.index(kind)], context, record)
    before, unchanged = short(packed), packed(*inputs)
    run_passes(packed, (kind,), context, record)
    torch.testing.assert_close(packed(*inputs), unchanged, rtol=1e-5, atol=1e-5 * float(unchanged.abs().max()))
    return Ran(before, short(packed), record.reports[-1], packed, context)  # type: ignore[arg-type]


def assert_lowers_exactly(gm: fx.GraphModule, *inputs: torch.Tensor) -> None:
    """The whole pipeline keeps every bit."""
    expected, given = trace_bits(gm, inputs), trace_bits(bnnfx.lower(gm, inputs), inputs)
    assert expected.bits and set(expected.bits) <= set(given.bits)
    assert [name for name, item in expected.bits.items() if (item.bits != given.bits[name].bits).any()] == []
