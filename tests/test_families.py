"""A few public families, by value, from the float model to the file; `make sweep-models` takes them all."""

import warnings

import onnx
import pytest
import torch
from helpers.families import FAST, build, check_model
from helpers.outcomes import random_operators
from onnx import TensorProto, helper
from torch import fx


@pytest.mark.parametrize("name", FAST)
def test_family_is_right_in_both_modes(name: str) -> None:
    """Both conversions make one file: what is random in training is not in it."""
    try:
        model = build(name, **FAST[name])
    except ImportError as missing:
        pytest.skip(str(missing))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    assert torch.equal(model.train()(x), model(x)) is not bool(FAST[name]), "it draws where it is built to"
    exported: list[fx.GraphModule] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bits that are constant in a small map
        assert [check_model(model, x, training, exported) for training in (False, True)] == ["", ""]
    assert len(exported) == 1


def test_random_operators_are_found() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    inside = helper.make_graph([helper.make_node("Bernoulli", ["x"], ["y"], "drawn")], "branch", [], [value])
    branch = helper.make_node("If", ["c"], ["z"], then_branch=inside, else_branch=inside)
    imports = [helper.make_opsetid("", 20)]
    function = helper.make_function(
        "own", "F", ["x"], ["y"], [helper.make_node("RandomNormalLike", ["x"], ["y"], "normal")], imports
    )
    graph = helper.make_graph([branch, helper.make_node("Relu", ["x"], ["r"])], "graph", [value], [value])
    model: onnx.ModelProto = helper.make_model(graph, functions=[function], opset_imports=imports)
    assert random_operators(model) == ["Bernoulli 'drawn'", "Bernoulli 'drawn'", "RandomNormalLike 'normal'"]
