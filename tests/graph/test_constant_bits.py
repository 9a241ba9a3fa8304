"""Bits that never change are counted by channel, warned of where all of a binarizer's are, and told by explain."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import bnnfx
from bnnfx.graph.constant_bits import REPORT


class Shifted(nn.Module):
    """A batch norm whose shift leaves the sign of some channels, or of all, as it is."""

    def __init__(self, dead: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv, self.norm, self.last = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        nn.init.constant_(self.bn.bias[:dead], 100.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(self.bn(self.stem(x)))))  # type: ignore[no-any-return]


X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def findings(gm: object) -> list[str]:
    return [f.reason for f in bnnfx.explain(gm)["conv"].findings if f.by == REPORT]  # type: ignore[arg-type]


def test_all_constant_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"'conv': all bits that it reads .* 'conv_sign' makes them of 'bn'"):
        gm = bnnfx.convert(Shifted(8), "xnor", example_inputs=(X,))
    assert findings(pickle.loads(pickle.dumps(gm))) == findings(gm) != []
    with pytest.warns(UserWarning, match="all bits"):
        bnnfx.convert(Shifted(8).eval(), "xnor", example_inputs=(X,))


@pytest.mark.parametrize("dead", [0, 3])
def test_some_channels_are_told_and_not_warned_of(dead: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = bnnfx.convert(Shifted(dead), "xnor", example_inputs=(X,))
    assert len(findings(gm)) == (dead > 0)
    if dead:
        assert "the bits of 3 of 8 channels" in findings(gm)[0]
        assert "3 of 8 channels" in str(bnnfx.explain(bnnfx.lower(gm.eval(), (X,))))


def test_the_remedy_helps() -> None:
    class Mended(Shifted):
        def __init__(self) -> None:
            super().__init__(8)
            self.bn = nn.Sequential(self.bn, nn.BatchNorm2d(8))  # type: ignore[assignment]

    gm = bnnfx.convert(Mended(), "xnor", example_inputs=(X,))
    assert not findings(gm)


def test_calibrate_counts_anew() -> None:
    gm = bnnfx.convert(Shifted(3), "xnor", example_inputs=(X,))
    before = copy.deepcopy(gm)
    nn.init.zeros_(gm.get_submodule("bn").bias)  # type: ignore[arg-type]
    seen = bnnfx.calibrate(gm, [X])
    assert int(seen["conv_sign"].constant.sum()) == 0 and not findings(gm) and findings(before)
    nn.init.constant_(gm.get_submodule("bn").bias[0], -100.0)  # type: ignore[index]
    seen = bnnfx.calibrate(gm, [X])
    assert seen["conv_sign"].constant.tolist() == [True] + [False] * 7
    assert "1 of 8 channels" in findings(gm)[0]


def test_a_fresh_batch_norm_is_judged_in_training() -> None:
    """In evaluation it has the statistics of no data, and what a stem of large bias gives is positive throughout."""
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)]
    nn.init.constant_(layers[0].bias, 50.0)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nn.Sequential(layers[0], nn.BatchNorm2d(8), *layers[1:]).eval()
        gm = bnnfx.convert(model, "xnor", example_inputs=(X,))
    assert bnnfx.calibrate(gm, [X], batch_norm=False)["2_sign"].constant.all()
    assert not bnnfx.calibrate(gm, [X])["2_sign"].constant.any()


def test_inputs_that_are_a_shape_only_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = bnnfx.convert(Shifted(8), "xnor", example_inputs=(torch.zeros(2, 3, 10, 10),))
    assert not findings(gm)
