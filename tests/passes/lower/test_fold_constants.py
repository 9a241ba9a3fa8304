"""What depends on constants alone is computed once; what of it is no tensor stays."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnnfx

CASES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a product": lambda m, x: x * (m.a * m.b.exp()),
    "its device": lambda m, x: x.to(device=(m.a * 2).device),
    "its element type": lambda m, x: x.to((m.a + m.b).dtype),
    "its number of axes": lambda m, x: x.mean((m.a * 2).dim(), keepdim=True),
    "parts of it": lambda m, x: x * (m.a * m.b).chunk(2)[0].repeat(2) + torch.split(m.b.neg(), 4)[1].sum(),
    "the greatest and where it is": lambda m, x: x * torch.max(m.a.reshape(2, 4) * 2, 1)[0].sum(),
    "a part and its shape": lambda m, x: (x * (m.a * m.b)).reshape(-1, (m.a * m.b)[:4].shape[0]),
}


class Net(nn.Module):
    def __init__(self, tail: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Linear(4, 8)
        self.a, self.b = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self, self.fc(self.conv(self.stem(x)).mean((2, 3))))


@pytest.mark.parametrize("name", CASES)
def test_values_stay(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    gm = bnnfx.convert(Net(CASES[name]), "xnor", example_inputs=(x,)).eval()
    packed = bnnfx.lower(gm, (x,), check=False)
    assert torch.allclose(packed(x), gm(x), atol=1e-5)
    constants = [node.name for node in packed.graph.nodes if node.op == "get_attr" and "constant" in str(node.target)]
    assert bool(constants) == (not name.startswith("its "))
