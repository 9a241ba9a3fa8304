"""The one table of operators of the float graph: `rows` has a row for each, `facts` says what a row says."""

from bnnfx.graph.operators.facts import FOLLOWS, OPAQUE, Call, Kind, Mode, Operator, Sign, Spelling
from bnnfx.graph.operators.lookup import (
    DROPS_MARK,
    call_of,
    is_opaque,
    modules_of,
    operator_of,
    operator_of_call,
    operator_of_module,
    operator_of_type,
)
from bnnfx.graph.operators.rows import ATTENTION, BATCH_NORM_TENSORS, FUNCTIONAL_BATCH_NORM, ROWS

__all__ = [
    "ATTENTION",
    "BATCH_NORM_TENSORS",
    "DROPS_MARK",
    "FOLLOWS",
    "FUNCTIONAL_BATCH_NORM",
    "OPAQUE",
    "ROWS",
    "Call",
    "Kind",
    "Mode",
    "Operator",
    "Sign",
    "Spelling",
    "call_of",
    "is_opaque",
    "modules_of",
    "operator_of",
    "operator_of_call",
    "operator_of_module",
    "operator_of_type",
]
