"""The stages of a graph and what each promises; the runner checks the promise after every pass."""

import enum
from collections.abc import Callable, Iterator

from torch import fx

from bnnfx.errors import StageError
from bnnfx.graph.canonical import alias_of
from bnnfx.graph.dataflow import bits_source, is_freezable, module_of, packed_op, packed_result
from bnnfx.graph.operators import Mode, Sign, operator_of
from bnnfx.graph.value_flow import follow_values
from bnnfx.nn import ActivationBinarizer, BinaryLayer


class Stage(enum.Enum):
    """Where a graph is on its way from the float model to the packed one."""

    TRACED = "traced"
    CANONICAL = "canonical"
    TRAINABLE = "trainable"
    PACKED = "packed"


def check_contract(gm: fx.GraphModule, stage: Stage) -> None:
    """Raise `StageError` naming the first node that breaks the promise of `stage`."""
    for rule in _RULES[stage]:
        for node, broken in rule(gm):
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


_Rule = Callable[[fx.GraphModule], Iterator[tuple[fx.Node, str]]]
"""The nodes that break a promise, each with what is wrong with it."""


def _one_spelling(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    for node in gm.graph.nodes:
        alias = alias_of(gm, node)
        if alias is not None:
            yield node, f"is spelled as {alias}, which has a canonical spelling"


def _layers_read_bits(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    for node in gm.graph.nodes:
        if isinstance(module_of(gm, node), BinaryLayer):
            source = bits_source(gm, node.all_input_nodes[0])
            if not isinstance(module_of(gm, source), ActivationBinarizer):
                yield node, f"is a binary layer that reads '{source.name}', which is no binarizer"


def _signs_are_not_constant(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    values = follow_values(gm)
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if isinstance(module, ActivationBinarizer) and not module.absorbs_relu:
            signs = values[node.all_input_nodes[0]].signs
            if signs.sign is Sign.NEVER_NEGATIVE:
                yield node, f"binarizes a tensor that is never negative, because of '{signs.culprit.name}'"


def _inference_only(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        trained = isinstance(module, ActivationBinarizer | BinaryLayer) or is_freezable(gm, node)
        if trained or (module is not None and operator_of(gm, node).mode is Mode.DROPS):
            yield node, f"is a {type(module).__name__}, which belongs to training"


def _packed_ops_read_bits(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    for node in gm.graph.nodes:
        op = packed_op(node)
        if op is None or not op.bits_in:
            continue
        result = packed_result(node.args[0])
        if result is None or result.output != "bits":
            yield node, f"reads '{node.args[0]}', which does not hold packed bits"


_RULES: dict[Stage, tuple[_Rule, ...]] = {
    Stage.TRACED: (),
    Stage.CANONICAL: (_one_spelling,),
    Stage.TRAINABLE: (_one_spelling, _layers_read_bits, _signs_are_not_constant),
    Stage.PACKED: (_inference_only, _packed_ops_read_bits),
}
