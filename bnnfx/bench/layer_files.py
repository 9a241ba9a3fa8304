"""One convolution in every form: our file, a float file, an int8 file, and OpenVINO's binary convolution."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from bnnfx.api import convert, export_onnx, lower
from bnnfx.bench.inputs import read_inputs
from bnnfx.bench.model_forms import Files, export_float
from bnnfx.config import Config
from bnnfx.errors import BenchmarkError

_SPELLING = re.compile(r"(\d+),(\d+),(\d+),(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class LayerShape:
    """A square convolution with a padding of half the kernel.

    Attributes:
        inputs: input channels.
        outputs: output channels.
        kernel: rows and columns of the kernel.
        size: rows and columns of the input map.
        stride: step in both directions.
    """

    inputs: int
    outputs: int
    kernel: int
    size: int
    stride: int = 1

    @classmethod
    def parse(cls, text: str) -> "LayerShape":
        """Read `inputs,outputs,kernel,size` or `inputs,outputs,kernel,size:stride`.

        Raises:
            BenchmarkError: it is spelled otherwise, or a number is 0.

        >>> LayerShape.parse("64,128,3,56:2")
        LayerShape(inputs=64, outputs=128, kernel=3, size=56, stride=2)
        """
        match = _SPELLING.fullmatch(text.strip())
        numbers = [int(number) for number in match.groups() if number is not None] if match else [0]
        if 0 in numbers:
            raise BenchmarkError(
                f"A layer is spelled INPUTS,OUTPUTS,KERNEL,SIZE or INPUTS,OUTPUTS,KERNEL,SIZE:STRIDE with numbers of 1 "
                f"or more, for example 64,64,3,56; got '{text}'."
            )
        return cls(*numbers)

    def __str__(self) -> str:
        step = "" if self.stride == 1 else f" stride {self.stride}"
        return f"{self.inputs}-{self.outputs} {self.kernel}x{self.kernel} @ {self.size}x{self.size}{step}"

    @property
    def padding(self) -> int:
        """Rows and columns of padding on each side."""
        return self.kernel // 2

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image, those on the padding included.

        >>> LayerShape(2, 3, 3, 4).macs == 4 * 4 * 3 * 2 * 9
        True
        """
        result = (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        return result * result * self.outputs * self.inputs * self.kernel * self.kernel


USUAL = tuple(LayerShape(channels, channels, 3, size) for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7)))
"""The 3x3 layers of a ResNet for images of 224x224."""


def layer_files(shape: LayerShape, seed: int, folder: Path) -> Files:
    """Write a model of one convolution and one batch norm, in float and binarized."""
    torch.manual_seed(seed)
    convolution = nn.Conv2d(shape.inputs, shape.outputs, shape.kernel, shape.stride, shape.padding, bias=False)
    model = nn.Sequential(convolution, nn.BatchNorm2d(shape.outputs)).eval()
    example = torch.zeros(2, shape.inputs, shape.size, shape.size)
    original = export_float(model, example, folder)
    bnn = convert(model, "bireal", config=Config(keep_float=()))
    ours = export_onnx(lower(bnn, (example,)), folder / "bnnfx.onnx")
    return Files(read_inputs(onnx.load(original), str(shape), None), original, ours)


def openvino_layer(shape: LayerShape, batch: int, seed: int) -> Any:
    """OpenVINO's binary convolution, behind the FakeQuantize that it takes its bits from."""
    import openvino
    from openvino import opset1

    x = opset1.parameter([batch, shape.inputs, shape.size, shape.size], np.float32, name="x")
    zero, minus, plus = (opset1.constant(np.full((1, 1, 1, 1), v, np.float32)) for v in (0, -1, 1))
    bits = opset1.fake_quantize(x, zero, zero, minus, plus, 2)
    count = shape.outputs * shape.inputs * shape.kernel * shape.kernel
    drawn = np.random.default_rng(seed).integers(0, 256, -(-count // 8), dtype=np.uint8)
    sizes = openvino.Shape([shape.outputs, shape.inputs, shape.kernel, shape.kernel])
    weight = openvino.op.Constant(openvino.Tensor(drawn, sizes, openvino.Type.u1))
    step, pads = [shape.stride] * 2, [shape.padding] * 2
    result = opset1.binary_convolution(bits, weight, step, pads, pads, [1, 1], "xnor-popcount", 0.0, "explicit")
    return openvino.Model([result], [x], "layer")
