"""Every form of a model gives the same: trainable graph, packed graph, files with kernels and without."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

import bnnfx
from bnnfx import Config


def trained(model: nn.Module, scheme: str, **options: object) -> fx.GraphModule:
    """Converted, trained for two steps, and split where the scheme has that."""
    torch.manual_seed(0)
    bnn = bnnfx.convert(model, scheme, example_inputs=model.inputs(), config=Config(options=options))  # type: ignore[operator]
    optimizer = torch.optim.SGD(bnn.parameters(), 0.05)
    for _ in bnnfx.Schedule(bnn, 2):
        optimizer.zero_grad()
        bnn(*model.inputs(4)).square().sum().backward()  # type: ignore[operator]
        optimizer.step()
    return bnnfx.api.split_if_ternary(bnn.eval())


def assert_forms_agree(
    bnn: fx.GraphModule, inputs: tuple[Tensor, ...], other: tuple[Tensor, ...], folder: Path
) -> None:
    """Lowered for `inputs`, and compared on `other` inputs, of another batch."""
    packed = bnnfx.lower(bnn, inputs)
    against = bnnfx.verify(bnn, packed, other)
    assert against and len(against.nodes) >= 3, str(against)
    assert not any(node.unexplained for node in against.nodes)
    for dialect in ("bnnfx", "standard"):
        path = bnnfx.export_onnx(packed, folder / f"{dialect}.onnx", dialect=dialect)
        assert bnnfx.verify(packed, path, other)
        results = [bnnfx.load(path, kernels=kernels).run(*other) for kernels in (True, False)]
        np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5 * np.abs(results[0]).max())
        assert np.std(results[0]) > 0
