"""Batch norm of values whose channels are their last axis: tokens, and maps that are channels last."""

from torch import Tensor, nn


class LastAxisBatchNorm(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over the last axis of `[N, ..., C]`, with the statistics of all others; same state.

    >>> import torch
    >>> x = torch.randn(4, 7, 3)
    >>> LastAxisBatchNorm(3)(x).mean((0, 1)).abs().max() < 1e-6
    tensor(True)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize; every row is a sample."""
        rows = super().forward(input.reshape(-1, input.shape[-1]))
        return rows.reshape(input.shape)
