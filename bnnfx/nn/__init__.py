"""Binary layers and activation binarizers as ordinary modules: usable with or without the compiler."""

from bnnfx.nn.activation import ActivationBinarizer, SignActivation
from bnnfx.nn.layers import BINARY_LAYERS, BinaryConv2d, BinaryLinear
from bnnfx.nn.weight import ScaledSign, WeightBinarizer

__all__ = [
    "BINARY_LAYERS",
    "ActivationBinarizer",
    "BinaryConv2d",
    "BinaryLinear",
    "ScaledSign",
    "SignActivation",
    "WeightBinarizer",
]
