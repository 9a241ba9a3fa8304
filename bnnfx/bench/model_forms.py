"""What is benchmarked: a model in all its forms, or an ONNX file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from bnnfx.api import convert, export_onnx, lower, split_if_ternary
from bnnfx.bench.inputs import Input, read_inputs
from bnnfx.bench.quiet import quiet
from bnnfx.calibration import calibrate
from bnnfx.errors import BenchmarkError, first_line
from bnnfx.inspect import summary
from bnnfx.model_source import load_model
from bnnfx.ops.packed_op import ONNX_DOMAIN
from bnnfx.private_interfaces import BatchNorm
from bnnfx.runtime.session import read_model

_EXAMPLES = 4  # images that batch-norm statistics come from


@dataclass(frozen=True)
class Files:
    """One model in up to three forms, and what it takes.

    Attributes:
        inputs: of the model.
        original: the float file.
        ours: the file with nodes of domain `ai.bnnfx`.
        standard: the same in standard operators.
        notes: what a reader has to know about the model.
        binary_share: of the multiply-accumulates of its layers, those that are binary in ours; None if not known.
    """

    inputs: tuple[Input, ...]
    original: Path | None = None
    ours: Path | None = None
    standard: Path | None = None
    notes: tuple[str, ...] = ()
    binary_share: float | None = None


def model_files(
    source: str, scheme: str, shape: Sequence[int], seed: int, folder: Path, *, standard: bool = True
) -> Files:
    """Build a model with random weights, binarize it, and write all three forms.

    Args:
        source: names the model, as for `bnnfx.model_source.load_model`.
        scheme: one of `bnnfx.schemes()`.
        shape: of one image, such as (3, 224, 224).
        seed: of the weights and of the images that the batch-norm statistics come from.
        folder: where the files go.
        standard: whether to write the form in standard operators.

    Raises:
        ModelSourceError: there is no such model.
        BenchmarkError: it does not take images of this shape.
        ConversionError: it cannot be binarized, or its ternary activations cannot be split.
    """
    torch.manual_seed(seed)
    model = load_model(source)
    images = torch.randn(_EXAMPLES, *shape)
    try:
        _settle(model, images)
    except Exception as error:
        raise BenchmarkError(
            f"{source} cannot run on inputs of {'x'.join(map(str, shape))}; --input (or --size) gives another shape. "
            f"It said: {first_line(error)}"
        ) from error
    original = export_float(model, images[:2], folder)
    bnn = convert(model, scheme, example_inputs=(images[:2],))
    calibrate(bnn, [images])
    cost = summary(bnn, (images[:2],)).totals
    packed = lower(split_if_ternary(bnn, (images[:2],)), (images[:2],))
    return Files(
        read_inputs(onnx.load(original), source, None),
        original,
        export_onnx(packed, folder / "bnnfx.onnx"),
        export_onnx(packed, folder / "standard.onnx", dialect="standard") if standard else None,
        (
            f"weights are random (seed {seed}) and batch-norm statistics come from random images, "
            "which changes no time; accuracy is not measured",
        ),
        cost.binary_macs / (cost.binary_macs + cost.float_macs),
    )


def export_float(model: nn.Module, images: torch.Tensor, folder: Path) -> Path:
    """Write a float model with a free batch size; `images` are at least two, as one would be taken for a constant.

    Raises:
        BenchmarkError: torch cannot export it.
    """
    path = folder / "original.onnx"
    try:
        with quiet():
            torch.onnx.export(
                model,
                (images,),
                path,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=["x"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as error:
        raise BenchmarkError(
            f"torch.onnx.export cannot write the float model with a free batch size. It said: {first_line(error)}"
        ) from error
    return path


def onnx_files(path: Path, original: Path | None, size: int | None) -> Files:
    """An ONNX file: one of ours, perhaps with its float original, or any other.

    Raises:
        BenchmarkError: open sizes, or an original that takes other inputs.
        ModelFileError: missing, or not ONNX.
    """
    model = read_model(path)
    inputs = read_inputs(model, path, size)
    ours = any(node.domain == ONNX_DOMAIN for node in model.graph.node)
    if original is None:
        return Files(inputs, ours=path) if ours else Files(inputs, original=path)
    if not ours:
        raise BenchmarkError(
            f"--float gives the original of a file that bnnfx wrote; {path} has no node of domain {ONNX_DOMAIN}. "
            "Leave --float away, or give the file in the dialect 'bnnfx'."
        )
    theirs = read_inputs(read_model(original), original, size)
    if [value.shape for value in theirs] != [value.shape for value in inputs]:
        raise BenchmarkError(
            f"{original} takes {_shapes(theirs)}, {path} takes {_shapes(inputs)}: they are not two forms of one model."
        )
    return Files(inputs, original=original, ours=path)


def _shapes(inputs: tuple[Input, ...]) -> str:
    return ", ".join("x".join("batch" if size is None else str(size) for size in value.shape) for value in inputs)


def _settle(model: nn.Module, images: torch.Tensor) -> None:
    """Batch norms that are not the identity, with the statistics of these images; leaves the model in eval mode."""
    for module in model.modules():
        if isinstance(module, BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.momentum = None  # the average of what it sees
    with torch.no_grad():
        model.train()(images)
    model.eval()
