"""Binary layers and activation binarizers as ordinary modules: usable with or without the compiler."""

from bnnfx.nn.activation import ActivationBinarizer, HeavisideActivation, SignActivation, TernaryActivation
from bnnfx.nn.binary_layer import BINARY_LAYERS, BinaryLayer, layer_kind, register_layer
from bnnfx.nn.convolution_layer import BinaryConv1d, BinaryConv2d
from bnnfx.nn.last_axis_norm import LastAxisBatchNorm
from bnnfx.nn.linear_layer import BinaryLinear
from bnnfx.nn.weight import ScaledSign, WeightBinarizer

__all__ = [
    "BINARY_LAYERS",
    "ActivationBinarizer",
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryLayer",
    "BinaryLinear",
    "HeavisideActivation",
    "LastAxisBatchNorm",
    "ScaledSign",
    "SignActivation",
    "TernaryActivation",
    "WeightBinarizer",
    "layer_kind",
    "register_layer",
]
