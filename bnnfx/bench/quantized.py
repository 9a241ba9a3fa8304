"""The int8 contender: ONNX Runtime's own static quantization of a float file."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bnnfx.bench.engines import Array
from bnnfx.bench.inputs import Input, feeds
from bnnfx.bench.quiet import quiet

CALIBRATION_RUNS = 4


def quantize(source: Path, target: Path, inputs: Sequence[Input], seed: int) -> None:
    """Write the int8 form of a float file.

    Unsigned activations and signed weights, one scale per output channel: what the integer instructions of x86
    processors take. (Signed activations are an order of magnitude slower there, so they would be a straw man.) Batch
    norms are folded into convolutions first, without which these would not be quantized together with them.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    fixed = [value.shape[0] for value in inputs if value.shape and value.shape[0] is not None]
    batch = fixed[0] if fixed else 1
    drawn = [feeds(inputs, batch, seed + 1 + i) for i in range(CALIBRATION_RUNS)]  # not the inputs that are timed
    with quiet(), TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # its symbolic shape inference is for transformers, and fails on some operators
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            _Reader([value.name for value in inputs], drawn),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )


class _Reader:
    """What `quantize_static` reads calibration data from: an object with `get_next`."""

    def __init__(self, names: list[str], batches: list[list[Array]]) -> None:
        self._batches = iter([dict(zip(names, batch, strict=True)) for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)
