"""Gradient mismatch: which parameters, which numbers, and that the model does not notice."""

import copy
import json
import math

import pytest
import torch
from helpers.models import Chain, DropoutBeforeLinear, ManyInputsOutputs, Residual, loss_of
from torch import nn
from torch.nn import functional as F

import bnnfx
from bnnfx.analysis import gradient_mismatch
from bnnfx.analysis.measured_parameters import weights_before_binarizers
from bnnfx.errors import AnalysisError
from bnnfx.nn import ActivationBinarizer, BinaryLinear, SignActivation
from bnnfx.numerics.surrogates import approx_sign, clipped_identity

DOUBLE = torch.finfo(torch.float64).eps


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def mlp(norm=False, surrogate=clipped_identity, width=6):
    """Two layers that feed binarizers, one that does not; float weights, double precision."""
    layers = [
        *(nn.Linear(5, width), nn.BatchNorm1d(width) if norm else nn.Identity(), SignActivation(surrogate)),
        *(nn.Linear(width, width), SignActivation(surrogate), nn.Linear(width, 2)),
    ]
    return nn.Sequential(*layers).double()


def batch(seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, n, dtype=torch.float64, generator=generator) for n in (5, 2))


def brute_force(model, name, x, y, epsilon):
    """One deep copy per shifted coordinate."""
    gradient = []
    for i in range(model.get_parameter(name).numel()):
        values = []
        for step in (epsilon, -epsilon):
            shifted = copy.deepcopy(model)
            with torch.no_grad():
                shifted.get_parameter(name).view(-1)[i] += step
                values.append(float(F.mse_loss(shifted(x), y)))
        gradient.append((values[0] - values[1]) / (2 * epsilon))
    return torch.tensor(gradient, dtype=torch.float64)


def state(model):
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "asks": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()],
        "versions": [p._version for p in [*model.parameters(), *model.buffers()]],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def same(a, b):
    for key in ("modes", "asks", "versions", "hooks"):
        assert a[key] == b[key], key
    assert torch.equal(a["random"], b["random"])
    assert a["tensors"].keys() == b["tensors"].keys()
    assert all(torch.equal(v, b["tensors"][k]) for k, v in a["tensors"].items())
    for one, other in zip(a["gradients"], b["gradients"], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 7])
def test_against_brute_force_and_plain_backward(norm, training, chunk_size):
    model = mlp(norm).train(training)
    if norm:
        model[1].running_mean.normal_()
    x, y = batch()
    result = gradient_mismatch(model, F.mse_loss, [(x, y)], epsilon=(0.5, 0.125), chunk_size=chunk_size)
    assert [(row.name, row.epsilon) for row in result.rows] == [
        (name, epsilon) for name in ("0.weight", "3.weight") for epsilon in (0.5, 0.125)
    ]
    assert not result.skipped
    F.mse_loss(model(x), y).backward()
    # a mean of 32 squares below 100, in another order of summation, divided by 2 * 0.125
    slack = 32 * 100 * DOUBLE / 0.25
    for row in result.rows:
        expected = brute_force(model, row.name, x, y, row.epsilon)
        torch.testing.assert_close(row.discrete[0], expected, rtol=0, atol=slack)
        coarse = model.get_parameter(row.name).grad.flatten()
        torch.testing.assert_close(row.coarse[0], coarse, rtol=0, atol=slack)
        assert row.cosine == pytest.approx(float(F.cosine_similarity(expected, coarse, dim=0)), abs=1e-9)
        assert row.discrete_norm == pytest.approx(float(expected.norm()), abs=36 * slack)
        assert row.coarse_norm == pytest.approx(float(coarse.norm()), abs=36 * slack)
        assert row.size == len(row.coordinates) == len(coarse)
        assert abs(row.cosine) < 0.999  # the two are different gradients


def test_a_smooth_network_has_no_mismatch():
    """Without a step the two gradients agree up to the third derivative: 1 - cosine is of order epsilon^4."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    result = gradient_mismatch(model, F.mse_loss, [batch()], layers=["0", "2", "0.bias"], epsilon=(0.1, 1e-3))
    cosines = {(row.name, row.epsilon): row.cosine for row in result.rows}
    assert len(cosines) == 6
    assert all(1 - cosine < 1e-3 for cosine in cosines.values())
    assert all(1 - cosine < 1e-11 for (_, epsilon), cosine in cosines.items() if epsilon == 1e-3)


def test_the_discrete_gradient_does_not_depend_on_the_surrogate():
    first, second = (mlp(surrogate=s) for s in (clipped_identity, approx_sign))
    second.load_state_dict(first.state_dict())
    a, b = (gradient_mismatch(m, F.mse_loss, [batch()], epsilon=0.25) for m in (first, second))
    assert len(a.rows) == 2
    for one, other in zip(a.rows, b.rows, strict=True):
        assert torch.equal(one.discrete, other.discrete)
        assert not torch.equal(one.coarse, other.coarse)


def test_nothing_of_the_model_changes():
    model = mlp(norm=True)
    model[3].weight.requires_grad_(False)
    model[5].eval()
    F.mse_loss(model(batch()[0]), batch()[1]).backward()
    before = state(model)
    result = gradient_mismatch(model, F.mse_loss, [batch(), batch(1)], epsilon=0.1)
    same(before, state(model))
    assert result["3.weight", 0.1].coarse.any()  # also of a weight that training holds fixed
    with pytest.raises(AnalysisError, match="The model cannot be called with a batch"):
        gradient_mismatch(model, F.mse_loss, [batch(), (torch.zeros(3, 4).double(), batch()[1])], epsilon=0.1)
    same(before, state(model))


@pytest.mark.parametrize("scheme", bnnfx.schemes())
@pytest.mark.parametrize("make", [Chain, Residual])
def test_trainable_graphs(scheme, make):
    """Only the float stem can be measured; XNOR-Net's projection and the running statistics stay undone."""
    bnn = bnnfx.convert(make(), scheme)
    with torch.no_grad():
        for layer in bnn.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.normal_()
    data = [(inputs, torch.zeros(())) for inputs in (make().inputs(), make().inputs(1))]
    before = state(bnn)
    result = gradient_mismatch(bnn, lambda output, _: output.square().mean(), data, epsilon=0.1, coordinates=20)
    same(before, state(bnn))
    stem = "stem.weight" if make is Chain else "stem.0.weight"
    assert [row.name for row in result.rows] == [stem]
    assert result.rows[0].discrete.shape == (2, 20) and result.rows[0].still < 0.5
    expected = {"conv1.weight", "conv2.weight"} if make is Chain else {"block.conv1.weight"}
    assert set(result.skipped) == expected
    assert all("takes the sign" in reason for reason in result.skipped.values())
    text = str(result)
    assert stem in text and "takes the sign" in text


def test_projection_is_used_but_not_written():
    """The forward pass of XNOR-Net in training mode, with its centred weights, without its write."""
    bnn = bnnfx.convert(Chain(), "xnor").double()
    with torch.no_grad():
        for name in ("conv1", "conv2", "fc1"):  # many are clamped, so that a second projection is another one
            bnn.get_submodule(name).weight.normal_()
    x = Chain().inputs(dtype=torch.float64)
    row = gradient_mismatch(bnn, loss_of_one, [(x,)], layers=["fc2"], epsilon=0.1).rows[0]
    loss_of(bnn, x).backward()  # projects
    coarse = bnn.fc2.weight.grad.flatten()
    torch.testing.assert_close(row.coarse[0], coarse, rtol=0, atol=64 * DOUBLE * float(coarse.abs().max()))


def loss_of_one(output):
    return output.float().square().mean()


def test_shared_several_inputs_and_outputs():
    model = ManyInputsOutputs()
    bnn = bnnfx.convert(model, "bireal")
    before = state(bnn)
    result = gradient_mismatch(bnn, lambda outputs: loss_of(lambda: outputs, ()), [(model.inputs(),)], coordinates=5)
    same(before, state(bnn))
    assert result.rows and all(row.coordinates.numel() == 5 for row in result.rows)


def test_tied_weights_are_shifted_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False), nn.Linear(5, 2)
            self.b.weight = self.a.weight
            self.act = SignActivation(clipped_identity)

        def forward(self, x):
            return self.last(self.act(self.b(self.act(self.a(x)))))

    model, (x, y) = Tied().double(), batch()
    result = gradient_mismatch(model, F.mse_loss, [(x, y)], epsilon=0.25)
    assert [row.name for row in result.rows] == ["a.weight"]
    expected = brute_force(model, "a.weight", x, y, 0.25)
    torch.testing.assert_close(result.rows[0].discrete[0], expected, rtol=0, atol=32 * 100 * DOUBLE / 0.5)
    assert gradient_mismatch(model, F.mse_loss, [(x, y)], layers=["b"], epsilon=0.25).rows[0].name == "b.weight"


def test_random_coordinates():
    model, data = mlp(width=12), [batch()]
    whole = gradient_mismatch(model, F.mse_loss, data, epsilon=0.25)
    part, again, other = (
        gradient_mismatch(model, F.mse_loss, data, epsilon=0.25, coordinates=40, seed=s) for s in (1, 1, 2)
    )
    for row, repeated, different, full in zip(part.rows, again.rows, other.rows, whole.rows, strict=True):
        assert len(row.coordinates) == 40 < row.size
        assert len(set(row.coordinates.tolist())) == 40
        assert torch.equal(row.coordinates, repeated.coordinates)
        assert not torch.equal(row.coordinates, different.coordinates)
        slack = 32 * 100 * DOUBLE / 0.5
        torch.testing.assert_close(row.discrete, full.discrete[:, row.coordinates], rtol=0, atol=slack)
        torch.testing.assert_close(row.coarse, full.coarse[:, row.coordinates], rtol=0, atol=slack)


def test_several_batches():
    model = mlp()
    together = gradient_mismatch(model, F.mse_loss, iter([batch(), batch(1)]), epsilon=0.25)
    singles = [gradient_mismatch(model, F.mse_loss, [b], epsilon=0.25) for b in (batch(), batch(1))]
    for i, row in enumerate(together.rows):
        cosines = [single.rows[i].cosine for single in singles]
        assert row.cosines == cosines
        assert row.cosine == pytest.approx(sum(cosines) / 2)
        assert row.spread == pytest.approx(abs(cosines[0] - cosines[1]) / math.sqrt(2))
        assert math.isnan(singles[0].rows[i].spread)


def test_a_shift_that_turns_no_bit():
    model = mlp()
    with torch.no_grad():
        model[0].bias += 100  # far from the threshold
        model[0].weight.zero_()
    row = gradient_mismatch(model, F.mse_loss, [batch()], epsilon=0.1).rows[0]
    assert row.still == 1.0 and math.isnan(row.cosine)
    assert row.to_dict()["cosine"] is None
    assert "undefined" in str(gradient_mismatch(model, F.mse_loss, [batch()], epsilon=0.1))


def test_table_and_dictionary():
    result = gradient_mismatch(mlp(), F.mse_loss, [batch(), batch(1)], epsilon=(0.5, 0.25), coordinates=10)
    text = str(result)
    assert max(map(len, text.splitlines())) <= 110
    for word in ("0.weight", "3.weight", "0.25", "10 of 30", "cosine"):
        assert word in text
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert len(plain["rows"]) == 4
    for row, written in zip(result.rows, plain["rows"], strict=True):
        assert written["cosines"] == row.cosines and written["still"] == row.still
        assert (written["name"], written["coordinates"], written["size"]) == (row.name, 10, row.size)
    with pytest.raises(KeyError):
        result["0.weight", 0.3]


class TestRefusals:
    def test_latent_weights(self):
        bnn = bnnfx.convert(Chain(), "bireal")
        with pytest.raises(ValueError, match=r"'conv1\.weight' belongs to a binary layer: .* takes the sign"):
            gradient_mismatch(bnn, loss_of_one, [(Chain().inputs(),)], layers=["conv1"])
        model = nn.Sequential(SignActivation(clipped_identity), BinaryLinear(5, 4), SignActivation(clipped_identity))
        with pytest.raises(AnalysisError, match=r"only 1-bit ones \(1\.weight\)"):
            gradient_mismatch(model, loss_of_one, [(torch.randn(2, 5),)])

    def test_no_binarizer(self):
        with pytest.raises(AnalysisError, match=r"0 activation binarizers depend on and finds none\. Name the param"):
            gradient_mismatch(nn.Linear(5, 2), loss_of_one, [(torch.randn(2, 5),)])

    def test_unknown_layer(self):
        with pytest.raises(ValueError, match=r"no float parameter 'fc'; those that can be measured are: \['0\.weight'"):
            gradient_mismatch(mlp(), F.mse_loss, [batch()], layers=["fc"])

    def test_dropout_is_random_in_training_mode(self):
        model = bnnfx.convert(DropoutBeforeLinear(), "bireal")
        data, name = [(DropoutBeforeLinear().inputs(),)], next(n for n, _ in model.named_parameters())
        with pytest.raises(AnalysisError, match=r"draws random numbers \(dropout in training mode: drop1, drop2\)"):
            gradient_mismatch(model, loss_of_one, data, layers=[name])
        assert gradient_mismatch(model.eval(), loss_of_one, data, layers=[name], coordinates=3).rows

    @pytest.mark.parametrize("layers", [None, ["0"]])
    def test_any_other_randomness(self, layers):
        class Noise(nn.Module):
            def forward(self, x):
                return x + torch.randn_like(x)

        model = nn.Sequential(mlp()[0], Noise(), mlp()[2])
        before = torch.get_rng_state()
        with pytest.raises(AnalysisError, match=r"random numbers \(a random operation\)"):
            gradient_mismatch(model, loss_of_one, [batch()[:1]], layers=layers)
        assert torch.equal(before, torch.get_rng_state())

    def test_changing_buffers(self):
        class Counter(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x):
                self.calls += 1
                return x * self.calls

        with pytest.raises(AnalysisError, match=r"changes the buffers 1\.calls"):
            gradient_mismatch(nn.Sequential(mlp()[0], Counter(), mlp()[2]), loss_of_one, [batch()[:1]])

    def test_vmap(self):
        class Branch(nn.Module):
            def forward(self, x):
                return x if x.sum() > 0 else -x

        model, (x, _) = nn.Sequential(mlp()[0], Branch(), mlp()[2]), batch()
        with pytest.raises(AnalysisError, match="chunk_size=1"):
            gradient_mismatch(model, loss_of_one, [(x,)])
        assert gradient_mismatch(model, loss_of_one, [(x,)], chunk_size=1).rows

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epsilon": 0.0}, "positive number"),
            ({"epsilon": ()}, "positive number"),
            ({"epsilon": (0.1, math.nan)}, "positive number"),
            ({"coordinates": 0}, "coordinates is a whole number of 1 or more"),
            ({"chunk_size": 0}, "chunk_size is a whole number of 1 or more"),
            ({"batches": []}, "at least one batch"),
            ({"batches": [torch.zeros(2, 5)]}, r"tuple \(inputs, \*targets\); got a Tensor"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            gradient_mismatch(mlp(), F.mse_loss, **{"batches": [batch()], **options})


def test_what_feeds_a_binarizer():
    """Also through another binarizer and beside a float path; not behind the last binarizer."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.side, self.last = (nn.Linear(4, 4) for _ in range(4))
            self.act = SignActivation(clipped_identity)

        def forward(self, x):
            x = self.act(self.first(x))
            return self.last(self.act(self.second(x) + x) + self.side(x))

    model = Net()
    chosen, skipped = weights_before_binarizers(model, lambda: model(torch.randn(2, 4)))
    assert list(chosen) == ["first.weight", "second.weight"] and not skipped
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_progress_is_shown_only_on_request(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    gradient_mismatch(mlp(), F.mse_loss, [batch()], coordinates=2)
    assert capsys.readouterr() == ("", "")
    gradient_mismatch(mlp(), F.mse_loss, [batch()], coordinates=2, progress=True)
    shown = capsys.readouterr()
    assert "coordinates" in shown.err and shown.out == ""


def test_more_levels_than_two():
    """A binarizer of another package with three levels is measured like any other."""

    class Ternary(ActivationBinarizer):
        def binarize(self, x):
            return F.hardtanh(x, 0, 1) + ((x >= 0.25).to(x) / 2 + (x >= 0.75).to(x) / 2 - F.hardtanh(x, 0, 1)).detach()

    model = nn.Sequential(nn.Linear(5, 6), Ternary(), nn.Linear(6, 2)).double()
    x, y = batch()
    row = gradient_mismatch(model, F.mse_loss, [(x, y)], epsilon=0.25).rows[0]
    expected = brute_force(model, "0.weight", x, y, 0.25)
    torch.testing.assert_close(row.discrete[0], expected, rtol=0, atol=32 * 100 * DOUBLE / 0.5)
