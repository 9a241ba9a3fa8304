"""The stages of a graph and what each promises; the runner checks the promise after every pass."""

import enum
from collections.abc import Callable

from torch import fx

from bnnfx.errors import StageError
from bnnfx.graph.canonical import alias_of
from bnnfx.graph.dataflow import (
    DROPOUTS,
    bits_source,
    is_freezable,
    module_of,
    never_negative,
    packed_op,
    packed_result,
)
from bnnfx.nn import ActivationBinarizer, BinaryLayer


class Stage(enum.Enum):
    """Where a graph is on its way from the float model to the packed one."""

    TRACED = "traced"
    CANONICAL = "canonical"
    TRAINABLE = "trainable"
    PACKED = "packed"


def check_contract(gm: fx.GraphModule, stage: Stage) -> None:
    """Raise `StageError` naming the first node that breaks the promise of `stage`."""
    for node in gm.graph.nodes:
        for rule in _RULES[stage]:
            broken = rule(gm, node)
            if broken is not None:
                raise StageError(f"The graph is not in stage {stage.value}: node '{node.name}' {broken}.")


def require_two_levels(gm: fx.GraphModule, function: str) -> None:
    """Raise `StageError` naming the first activation binarizer whose values are not those that a bit stands for."""
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if isinstance(module, ActivationBinarizer) and len(module.levels) > 2:
            levels = ", ".join(f"{level:g}" for level in module.levels)
            remedy = "Call bnnfx.split first, which makes two binary activations of a ternary one."
            raise StageError(
                f"{function} takes activations of one bit; '{node.target}' has {len(module.levels)} levels ({levels}). "
                + (remedy if module.split() is not None else "Use a binarizer with two.")
            )
        if isinstance(module, ActivationBinarizer) and module.levels not in ((-1, 1), (0, 1)):
            raise StageError(
                f"{function} takes activations that are -1 or 1, or 0 or 1; those of '{node.target}' are "
                f"{' or '.join(f'{level:g}' for level in module.levels)}. Let the layer behind it have the factor."
            )


_Rule = Callable[[fx.GraphModule, fx.Node], str | None]


def _one_spelling(gm: fx.GraphModule, node: fx.Node) -> str | None:
    alias = alias_of(gm, node)
    return None if alias is None else f"is spelled as {alias}, which has a canonical spelling"


def _layer_reads_bits(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if not isinstance(module_of(gm, node), BinaryLayer):
        return None
    source = bits_source(gm, node.all_input_nodes[0])
    if isinstance(module_of(gm, source), ActivationBinarizer):
        return None
    return f"is a binary layer that reads '{source.name}', which is no binarizer"


def _sign_is_not_constant(gm: fx.GraphModule, node: fx.Node) -> str | None:
    module = module_of(gm, node)
    if not isinstance(module, ActivationBinarizer) or module.absorbs_relu:
        return None
    culprit = never_negative(gm, node.all_input_nodes[0])
    return None if culprit is None else f"binarizes a tensor that is never negative, because of '{culprit.name}'"


def _inference_only(gm: fx.GraphModule, node: fx.Node) -> str | None:
    module = module_of(gm, node)
    if isinstance(module, (ActivationBinarizer, BinaryLayer, *DROPOUTS)) or is_freezable(module):
        return f"is a {type(module).__name__}, which belongs to training"
    return None


def _packed_ops_read_bits(gm: fx.GraphModule, node: fx.Node) -> str | None:
    op = packed_op(node)
    if op is None or not op.bits_in:
        return None
    source = node.args[0]
    result = packed_result(source)
    if result is not None and result.output == "bits":
        return None
    return f"reads '{source}', which does not hold packed bits"


_RULES: dict[Stage, tuple[_Rule, ...]] = {
    Stage.TRACED: (),
    Stage.CANONICAL: (_one_spelling,),
    Stage.TRAINABLE: (_one_spelling, _layer_reads_bits, _sign_is_not_constant),
    Stage.PACKED: (_inference_only, _packed_ops_read_bits),
}
