"""LastAxisBatchNorm: torch's batch norm on rows, and the same bits from the function that it is frozen to."""

import pytest
import torch
from torch import nn

from bnnfx.nn import LastAxisBatchNorm
from bnnfx.nn.frozen_norm import frozen_batch_norm


@pytest.mark.parametrize("shape", [(6, 5), (2, 7, 5), (2, 3, 4, 5)])
def test_is_batch_norm_of_rows(shape):
    x, norm, plain = torch.randn(shape) * 3 + 1, LastAxisBatchNorm(5), nn.BatchNorm1d(5)
    for training in (True, False):
        given, expected = norm.train(training)(x), plain.train(training)(x.reshape(-1, 5))
        assert torch.equal(given, expected.reshape(shape))
    norm.load_state_dict(plain.state_dict())
    state = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    assert torch.equal(frozen_batch_norm(x, *state, -1), norm.eval()(x))
    if x.ndim > 2:
        assert torch.equal(frozen_batch_norm(x.movedim(-1, 1).contiguous(), *state), norm(x).movedim(-1, 1))


def test_values_that_are_not_in_order():
    x, norm = torch.randn(2, 5, 3).transpose(1, 2), LastAxisBatchNorm(5)
    assert torch.equal(norm(x), LastAxisBatchNorm(5)(x.contiguous()))
