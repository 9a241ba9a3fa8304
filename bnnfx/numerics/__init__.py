"""Arithmetic of binary networks, apart from any graph.

Bits and integers live in numpy (`bits`, `convolution`, `pooling`, `thresholds`), differentiable mathematics in torch
(`surrogates`, `rotation`). Nothing here imports graph code, so every statement can be tested as a property of arrays.
"""
