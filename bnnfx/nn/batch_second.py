"""The order in memory that torch's attention leaves behind, which a dropout behind it draws its numbers in."""

from torch import Tensor, nn


class BatchSecond(nn.Module):
    """Give `[N, L, C]` as it is; in training, laid out in memory as `[L, N, C]`.

    `nn.MultiheadAttention` does so with `batch_first=True`, and a dropout fills its mask in the order of memory: behind
    an attention that is written out the masks are the same, then.

    >>> import torch
    >>> BatchSecond()(torch.zeros(2, 3, 4)).stride()
    (4, 8, 1)
    """

    def forward(self, x: Tensor) -> Tensor:
        """The values of `x`."""
        return x.transpose(0, 1).contiguous().transpose(0, 1) if self.training and x.ndim > 2 else x
