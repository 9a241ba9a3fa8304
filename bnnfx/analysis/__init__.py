"""Measurements that explain a binary network's training: gradients, quantization errors, flips of signs."""

from bnnfx.analysis.discrete_gradient import discrete_gradient
from bnnfx.analysis.flip_rate import FlipHistory, FlipRate, FlipRecord
from bnnfx.analysis.gradient_mismatch import GradientMismatch, LayerMismatch, gradient_mismatch
from bnnfx.analysis.quantization_error import Alignment, LayerError, QuantizationError, quantization_error
from bnnfx.analysis.weight_histogram import WeightHistogram

__all__ = [
    "Alignment",
    "FlipHistory",
    "FlipRate",
    "FlipRecord",
    "GradientMismatch",
    "LayerError",
    "LayerMismatch",
    "QuantizationError",
    "WeightHistogram",
    "discrete_gradient",
    "gradient_mismatch",
    "quantization_error",
]
