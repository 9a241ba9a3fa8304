"""Binary layers and activation binarizers as ordinary modules: usable with or without the compiler."""

from bnnfx.nn.activation import ActivationBinarizer, HeavisideActivation, SignActivation, TernaryActivation
from bnnfx.nn.binary_layers import BINARY_LAYERS, BinaryConv2d, BinaryLinear
from bnnfx.nn.weight import ScaledSign, WeightBinarizer

__all__ = [
    "BINARY_LAYERS",
    "ActivationBinarizer",
    "BinaryConv2d",
    "BinaryLinear",
    "HeavisideActivation",
    "ScaledSign",
    "SignActivation",
    "TernaryActivation",
    "WeightBinarizer",
]
