"""What a layer costs: bits to keep and operations to run, by the rule behind the published figures.

    parameter bits = 1-bit weights + 32 * (other weights and biases + 2 per batch-norm channel)
    FLOPs          = float MACs + binary MACs / 64

One multiply-accumulate is one operation. Only convolutions and linear layers count: batch norms, activation functions,
pooling, sums and scale factors run for free. A batch norm is two numbers per channel, as it is once folded. The divisor
is for popcount instructions, so it needs both operands in one bit: a 1-bit weight times a ternary or a float
activation, or a float weight times an activation in {0, 1}, are float MACs.

Source: Bi-Real Net (arXiv 1808.00278), section 4.4; the two numbers per batch-norm channel follow from the figures
published for BinaryDuo, which neither zero nor four reproduce.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from bnnfx.ops.window import geometry

FLOAT_BITS = 32
BATCH_NORM_NUMBERS = 2
BINARY_MACS_PER_FLOP = 64


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a layer, or a whole model, costs; costs add up.

    Attributes:
        one_bit_parameters: weights of one bit each, padding left out.
        float_parameters: other weights and biases of convolutions and linear layers; in packed graphs and files, every
            constant of them that takes 32 bits.
        batch_norm_channels: channels of batch norms that are layers of their own.
        binary_macs: multiply-accumulates of one sample with both operands in one bit.
        float_macs: all other multiply-accumulates of one sample.
        mean_additions: values of one sample that are summed up at run time for the mean that a binarizer compares with;
            the rule does not count them.
        other_parameters: parameters that the rule does not count, such as slopes, embeddings, or what a scheme trains
            and folds away.
        packed_bytes: bytes of its constants in a packed graph or file; for other models what they will take, with
            batch norms folded and rows of bits padded to whole 64-bit words.
    """

    one_bit_parameters: int = 0
    float_parameters: int = 0
    batch_norm_channels: int = 0
    binary_macs: int = 0
    float_macs: int = 0
    mean_additions: int = 0
    other_parameters: int = 0
    packed_bytes: int = 0

    @property
    def parameter_bits(self) -> int:
        """Bits of the parameters, by the rule.

        >>> Cost(one_bit_parameters=100, float_parameters=2, batch_norm_channels=1).parameter_bits
        228
        """
        numbers = self.float_parameters + BATCH_NORM_NUMBERS * self.batch_norm_channels
        return self.one_bit_parameters + FLOAT_BITS * numbers

    @property
    def mbit(self) -> float:
        """`parameter_bits` in millions."""
        return self.parameter_bits / 1e6

    @property
    def flops(self) -> float:
        """Operations of one sample, by the rule.

        >>> Cost(binary_macs=640, float_macs=5).flops
        15.0
        """
        return self.float_macs + self.binary_macs / BINARY_MACS_PER_FLOP

    @staticmethod
    def sum(costs: Iterable["Cost"]) -> "Cost":
        """All of them together."""
        listed = list(costs)
        return Cost(**{field.name: sum(getattr(cost, field.name) for cost in listed) for field in fields(Cost)})

    def to_dict(self) -> dict[str, int | float]:
        """Everything counted, and what the rule makes of it."""
        counted: dict[str, int | float] = {field.name: getattr(self, field.name) for field in fields(self)}
        return counted | {"mbit": self.mbit, "flops": self.flops}


@dataclass(frozen=True)
class Operands:
    """What a layer multiplies: how many values a weight, and an activation, can take; None where they are floats.

    >>> print(Operands(2, 3), Operands(2, 3).macs(100).float_macs)
    1-bit x ternary 100
    """

    weight: int | None = None
    activation: int | None = None

    def macs(self, count: int) -> Cost:
        """The cost of so many multiply-accumulates."""
        return Cost(binary_macs=count) if self.binary else Cost(float_macs=count)

    @property
    def binary(self) -> bool:
        """Whether both take one bit, so that 64 products are one instruction."""
        return self.weight == self.activation == 2

    @property
    def mixed(self) -> bool:
        """Whether one takes one bit and the other does not, which saves multiplications but counts as float."""
        return not self.binary and 2 in (self.weight, self.activation)

    def __str__(self) -> str:
        return f"{_kind(self.weight)} x {_kind(self.activation)}"


def _kind(levels: int | None) -> str:
    return {None: "float", 2: "1-bit", 3: "ternary"}.get(levels, f"{levels} levels")


@dataclass(frozen=True)
class LayerCost:
    """One call of a layer.

    Attributes:
        name: qualified name of the module, or name of the node.
        kind: its type.
        operands: what it multiplies; None if it is no convolution and no linear layer.
        input_shape: of its first input, without the batch axis.
        output_shape: of its (first) result, without the batch axis.
        cost: parameters are those that no earlier row has counted, so a shared layer has them at its first call.
    """

    name: str
    kind: str
    operands: Operands | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    cost: Cost


def packed_convolution(
    weight: tuple[int, ...], x: tuple[int, ...], attributes: Mapping[str, Any]
) -> tuple[int, int, tuple[int, int]]:
    """Size and work of a packed convolution; taps that fall on the padding count, as in the usual figures.

    Args:
        weight: shape of its weight, `[O, kh, kw, bytes]`.
        x: shape of its packed input, `[N, H, W, bytes]`.
        attributes: of the operator, by the names that torch has for them.

    Returns:
        Weights, multiply-accumulates of the whole batch, and rows and columns of the result.

    >>> plain = {"channels": 64, "groups": 1, "strides": (2, 2), "pads": (1, 1), "dilations": (1, 1)}
    >>> packed_convolution((32, 3, 3, 8), (1, 8, 6, 8), plain)
    (18432, 221184, (4, 3))
    """
    outputs, rows, columns, _ = weight
    weights = outputs * rows * columns * (attributes["channels"] // attributes["groups"])
    window = geometry(*(attributes[name] for name in ("strides", "pads", "dilations")))
    size = window.output_size(x[1], x[2], (rows, columns))
    return weights, x[0] * prod(size) * weights, size
