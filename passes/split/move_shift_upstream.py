"""The shift in front of split activations, into the batch norms that it comes from; residual streams become halves."""

from collections.abc import Iterator

from torch import fx

from bnnfx.graph.dataflow import calls, is_add, is_batch_norm, is_replication, module_of
from bnnfx.graph.halved_channels import (
    axis_in_front,
    axis_of_halves,
    channels_of,
    find_halves,
    halves_of,
    is_called_once,
    keeps_shift,
    normalizes,
    put_in_place,
    reads_bits,
    replication_of,
    widen_batch_norm,
)
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.nn.halves import SHIFT, shift_halves

_STAYS = ", so the shift stays a constant behind it"


class MoveShiftUpstream(Pass[None, fx.Node, fx.Node | None]):
    """Before: `shift_halves([v, v], 1/4)`. After: the same values, made in another way.

    By what v is:

    * `bn(u)`: a batch norm of twice the channels over `[u, u]`, whose beta is shifted;
    * `f(u)` with `f(x + c) = f(x) + c` (max-pooling, a view): f of the shifted halves of u;
    * `a + b`: the shifted halves of the one plus two copies of the other, so that a residual stream s is carried as
      `[s - 1/4, s + 1/4]` from one block to the next, and whoever needs s itself reads the mean.

    Of a sum, the operand that an activation reads carries the shift (an identity shortcut); else the one behind a layer
    on bits. Allowed where a batch norm is in reach; elsewhere the shift stays a constant.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[fx.Node]:
        """Every shift, the last one first, so that a stream is followed against its direction."""
        seen: set[fx.Node] = set()
        while True:
            waiting = [node for node in self.gm.graph.nodes if calls(node, shift_halves) and node not in seen]
            if not waiting:
                return
            seen.add(waiting[-1])
            yield waiting[-1]

    def allowed(self, match: fx.Node) -> fx.Node | Refusal | None:
        """A batch norm must be in reach, and be the one that only this value comes from.

        The plan is the operand that carries the shift; a batch norm itself needs none.
        """
        value, axis = _source(match), axis_of_halves(match)
        if normalizes(self.gm, value, axis):
            return self._keeps_beta(value)
        if keeps_shift(self.gm, value, axis) or is_add(value):
            if is_add(value) and channels_of(self.gm, value) is None:
                return Refusal(
                    f"the sum '{value.name}' may add maps of different sizes{_STAYS}",
                    "add maps whose channels the graph tells: of convolutions, batch norms, pooling and activations",
                )
            carrier = self._carrier(value, axis)
            if carrier is not None:
                return carrier
            return Refusal(
                f"no batch norm adds to '{value.name}'{_STAYS}", "put a batch norm behind one of its summands"
            )
        if is_batch_norm(self.gm, value):
            return Refusal(
                f"'{value.name}' may normalize another axis than that of the channels{_STAYS}",
                "use bnnfx.nn.LastAxisBatchNorm behind linear layers",
            )
        return Refusal(f"'{value.name}' is no batch norm{_STAYS}", "put a batch norm behind it")

    def rewrite(self, match: fx.Node, plan: fx.Node | None) -> None:
        """Let the value itself be the halves."""
        value, axis = _source(match), axis_of_halves(match)
        module = module_of(self.gm, value)
        if is_batch_norm(self.gm, value):
            assert module is not None
            value.replace_input_with(value.all_input_nodes[0], replication_of(value.all_input_nodes[0], axis))
            widen_batch_norm(module, SHIFT)
        else:
            axis = axis_in_front(value, axis)
            for operand in value.all_input_nodes:
                doubled = halves_of if operand is plan else replication_of
                value.replace_input_with(operand, doubled(operand, axis))
        put_in_place(value, match)

    def subject(self, match: fx.Node) -> str:
        """The value that is shifted: the module's name if it is a module's."""
        value = _source(match)
        return str(value.target) if value.op == "call_module" else value.name

    def _keeps_beta(self, batch_norm: fx.Node) -> Refusal | None:
        module = module_of(self.gm, batch_norm)
        assert module is not None
        if module.bias is None:
            return Refusal(f"it has no beta to shift{_STAYS}", "make it with affine=True")
        if not is_called_once(self.gm, batch_norm):
            return Refusal(f"it is called several times{_STAYS}", "give each call a batch norm of its own")
        return None

    def _can_carry(self, value: fx.Node, axis: int) -> bool:
        if find_halves(value, axis) is not None:
            return True
        if normalizes(self.gm, value, axis):
            return self._keeps_beta(value) is None
        moves = keeps_shift(self.gm, value, axis) or self._adds_alike(value)
        return moves and self._carrier(value, axis) is not None

    def _adds_alike(self, value: fx.Node) -> bool:
        return is_add(value) and channels_of(self.gm, value) is not None

    def _carrier(self, value: fx.Node, axis: int) -> fx.Node | None:
        """Which operand of a sum, or the input of any other node, can be carried as shifted halves."""
        axis = axis_in_front(value, axis)
        operands = [operand for operand in value.all_input_nodes if self._can_carry(operand, axis)]
        shifted = [operand for operand in operands if self._is_read_shifted(operand, axis)]
        behind_layers = [operand for operand in operands if reads_bits(self.gm, operand)]
        return next(iter([*shifted, *behind_layers, *operands]), None)

    def _is_read_shifted(self, value: fx.Node, axis: int) -> bool:
        """Whether an activation reads this value, or what it is a pooling or a view of."""
        while find_halves(value, axis) is None and keeps_shift(self.gm, value, axis):
            value, axis = value.all_input_nodes[0], axis_in_front(value, axis)
        return find_halves(value, axis) is not None


def _source(shift: fx.Node) -> fx.Node:
    """The map whose copies are shifted."""
    copies = shift.all_input_nodes[0]
    assert is_replication(copies)
    return copies.all_input_nodes[0]
