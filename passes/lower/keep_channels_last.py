"""Float maps between binary layers in the layout of their bits: permutations only at a region's border."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from bnnfx.graph import edit
from bnnfx.graph.affine import affine_of
from bnnfx.graph.chain import PACK
from bnnfx.graph.channels_last import TO_NCHW, TO_NHWC, permute, permutes
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls, constant, is_view, module_of, packed_op, sole_user
from bnnfx.graph.operators import Kind, Mode, call_of, is_opaque, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.nn.halves import mean_of_halves, shift_halves
from bnnfx.ops.fused_conv2d import NOTHING

_EVERYTHING = ((1, 2, 3), [1, 2, 3])


@dataclass
class Border:
    """A value that changes its layout, and one reader of it.

    Attributes:
        source: a permutation to NCHW, or the NCHW value that a permutation to NHWC reads.
        reader: who reads it.
    """

    source: fx.Node
    reader: fx.Node


Rule = Callable[[Border], None]
"""What is done to the reader of a border."""


class KeepChannelsLast(Pass[LowerContext, Border, Rule]):
    """Before: `f(permute(stream))`. After: `permute(f(stream))`, until permutations meet and cancel.

    What f may be: another permutation, `pack`, the mean of a map or of a sample, `flatten` of a 1x1 map, an activation,
    a sum, a product or sum with constants per channel (a batch norm), a concatenation of channels (with maps of another
    origin, too, where it becomes bits and nothing else), a map of halves to the one it stands for, and a 1x1
    convolution, which is a matrix product then (with the batch norm behind it folded into the matrix, and the bias into
    that of the binary layer whose result it is added to). What a batch norm adds in front of bits goes into their
    threshold. Where a region begins, `pack` reads the permuted map as well.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED

    def __init__(self, gm: fx.GraphModule, context: LowerContext) -> None:
        super().__init__(gm, context)
        self._viewed: set[fx.Node] = set()
        """What leads to such a reader: float layers keep the order in memory that they are given."""
        for node in reversed(gm.graph.nodes):
            if self._may_view(node) or (packed_op(node) is None and not self._viewed.isdisjoint(node.users)):
                self._viewed.add(node)

    def match(self) -> Iterator[Border]:
        """Every reader of a permuted stream: as long as something moves; then where regions begin; what is left."""
        moved = True
        while moved:
            moved = False
            for border in list(self._borders()):
                if permutes(border.source, TO_NCHW) and self._is_open(border):
                    moved = True
                    yield border
        # not earlier: a value that moves is no beginning of a region any more
        while (begin := next((border for border in self._borders() if self._is_open(border)), None)) is not None:
            yield begin
        yield from [border for border in self._borders() if not self._is_settled(border.reader)]

    def allowed(self, match: Border) -> Rule | Refusal:
        """There must be a rule for the reader."""
        rule = self._rule(match)
        if rule is not None:
            return rule
        reader = match.reader
        what = f"'{reader.target}'" if reader.op == "call_module" else f"'{reader.name}'"
        if permutes(reader, TO_NHWC):
            return Refusal(f"a binary region begins here, with a map that a float layer gives as {_NCHW}")
        return Refusal(f"{what} works on {_NCHW}, so the map is transposed in front of it", _REMEDY)

    def rewrite(self, match: Border, plan: Rule) -> None:
        """Apply the rule for the reader."""
        with self.gm.graph.inserting_before(match.reader):
            plan(match)

    def subject(self, match: Border) -> str:
        """Name of the value."""
        return match.source.name

    def layers(self, match: Border) -> tuple[str, ...]:
        """The layer that gives the stream."""
        stream = match.source.args[0] if permutes(match.source, TO_NCHW) else None
        if calls(stream, operator.getitem):
            stream = stream.args[0]  # type: ignore[union-attr]
        return self.context.layers_of(stream)

    def _is_open(self, border: Border) -> bool:
        return border.reader in border.source.users and self._rule(border) is not None

    def _is_settled(self, reader: fx.Node) -> bool:
        """Whether a permutation has to be there: in front of the graph's output, or of what packs a region's map."""
        return (
            reader.op == "output"
            or _lays_out(reader)
            or any(calls(user, torch.ops.bnnfx.pack_nhwc.default) for user in reader.users)
        )

    def _borders(self) -> Iterator[Border]:
        for node in self.gm.graph.nodes:
            if permutes(node, TO_NCHW):
                yield from (Border(node, user) for user in node.users)
            elif permutes(node, TO_NHWC) and not permutes(node.args[0], TO_NCHW):
                yield Border(node.args[0], node)

    def _rule(self, border: Border) -> Rule | None:
        source, reader = border.source, border.reader
        if not permutes(source, TO_NCHW):
            return self._begin_region if self._pack_of(source) is not None else None
        module, shape = module_of(self.gm, reader), self.context.shapes.get(source)
        if permutes(reader, TO_NHWC):
            return self._cancel
        if self._may_view(reader):
            return self._lay_out
        if _lays_out(reader):
            return None
        if calls(reader, PACK) and reader.args[0] is source:
            return self._pack
        if _is_mean(reader) and _dims(reader) in _EVERYTHING:
            return self._read_stream
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            return self._mean
        if calls(reader, torch.flatten) and reader.args[1:] in ((1,), (1, -1)) and shape is not None:
            return self._read_stream if shape[2:] == (1, 1) else None
        if isinstance(module, nn.Conv2d) and _is_pointwise(module):
            return self._matrix_product
        row = operator_of(self.gm, reader)
        alone = reader.all_input_nodes == [source]
        if (
            row.kind is Kind.ELEMENTWISE
            and row.mode is Mode.SAME
            and alone
            and not row.per_channel(call_of(self.gm, reader))
        ):
            return self._move
        if calls(reader, operator.add) and all(permutes(operand, TO_NCHW) for operand in reader.args):
            return self._move
        if calls(reader, mean_of_halves) or calls(reader, shift_halves):
            return self._move
        if affine_of(self.gm, reader, 4) is not None and _reads_only(reader, source):
            return self._scale if len(shape or ()) == 4 else None
        if calls(reader, torch.cat) and _dims(reader) == 1 and len(shape or ()) == 4:
            alike = all(permutes(part, TO_NCHW) for part in reader.all_input_nodes)
            return self._move if alike or self._is_packed_only(reader) else None
        return self._lay_out if reader in self._viewed else None

    def _is_packed_only(self, node: fx.Node) -> bool:
        """Whether nothing but bits is made of a map, in whose layout the bits are."""
        return bool(node.users) and all(
            (calls(user, PACK) and user.args[0] is node)
            or (affine_of(self.gm, user, 4) is not None and self._is_packed_only(user))
            for user in node.users
        )

    def _may_view(self, reader: fx.Node) -> bool:
        """Whether a reader may read the memory of a map as it lies there: of what is not known, anything may be."""
        row = operator_of(self.gm, reader)
        moves = row.kind is Kind.MOVE and not is_view(reader) and not permutes(reader, TO_NHWC)
        unknown = is_opaque(row) and reader.op != "output" and not _is_ours(reader)
        return unknown or row.axes not in (None, 4) or (moves and reader.op == "call_method")

    def _lay_out(self, border: Border) -> None:
        """Put a map in the order of its axes; what was traced reads one that is so."""
        laid_out = self.gm.graph.call_method("contiguous", (border.source,))
        if border.source in self.context.shapes:
            self.context.shapes[laid_out] = self.context.shapes[border.source]
        border.reader.replace_input_with(border.source, laid_out)

    def _pack_of(self, source: fx.Node) -> fx.Node | None:
        """The first comparison of an NCHW map."""
        return next((user for user in source.users if calls(user, PACK) and user.args[0] is source), None)

    def _begin_region(self, border: Border) -> None:
        """Compare what is channels last anyway."""
        graph, pack = self.gm.graph, self._pack_of(border.source)
        assert pack is not None
        permutations = [user for user in border.source.users if permutes(user, TO_NHWC)]
        with graph.inserting_before(min(pack, *permutations)):
            stream = permute(border.source, TO_NHWC)
        for permutation in permutations:
            permutation.replace_all_uses_with(stream)
            graph.erase_node(permutation)
        threshold = self._nhwc_threshold(pack)
        with graph.inserting_before(pack):
            edit.replace(pack, graph.call_function(torch.ops.bnnfx.pack_nhwc.default, (stream, threshold)))

    def _cancel(self, border: Border) -> None:
        stream = border.source.args[0]
        assert isinstance(stream, fx.Node)
        border.reader.replace_all_uses_with(stream)
        self._erase(border.reader)

    def _read_stream(self, border: Border) -> None:
        border.reader.replace_input_with(border.source, border.source.args[0])  # type: ignore[arg-type]
        self._erase()

    def _pack(self, border: Border) -> None:
        arguments = (border.source.args[0], self._nhwc_threshold(border.reader))
        edit.replace(border.reader, self.gm.graph.call_function(torch.ops.bnnfx.pack_nhwc.default, arguments))
        self._erase()

    def _nhwc_threshold(self, pack: fx.Node) -> fx.Node:
        """The threshold of a comparison, for a map that is channels last."""
        threshold = pack.args[1]
        assert isinstance(threshold, fx.Node)
        with self.gm.graph.inserting_before(pack):
            if threshold.op == "get_attr":
                value = constant(self.gm, threshold)
                value = value.reshape((1,) * (4 - value.ndim) + tuple(value.shape)).permute(TO_NHWC).contiguous()
                return edit.add_buffer(self.gm, f"{pack.name}_threshold", value)
            if _is_mean(threshold) and _dims(threshold) in _EVERYTHING:
                return threshold  # [N, 1, 1, 1] either way
            return permute(threshold, TO_NHWC)

    def _mean(self, border: Border) -> None:
        mean = self.gm.graph.call_function(torch.mean, (border.source.args[0], [1, 2], True))
        self._finish(border, mean)

    def _move(self, border: Border) -> None:
        """Let the reader itself read streams, whatever it does to single values or channels."""
        graph, reader = self.gm.graph, border.reader
        copy = graph.node_copy(reader, self._stream_of)
        if calls(copy, torch.cat):
            copy.args, copy.kwargs = (copy.args[0], 3), {}
        elif calls(copy, mean_of_halves) or calls(copy, shift_halves):
            copy.kwargs = {"axis": 3}
        self._finish(border, copy)

    def _scale(self, border: Border) -> None:
        """Let a product and a sum with one number per channel read a stream, whose last axis they are along."""
        affine = affine_of(self.gm, border.reader, 4)
        assert affine is not None
        graph, name, result = self.gm.graph, border.reader.name, border.source.args[0]
        steps = [(operator.mul, "scale", affine.scale, 1), (operator.add, "bias", affine.bias, 0)]
        if self._moves_into_threshold(border.reader, affine.bias):
            del steps[1]
        for function, what, value, neutral in steps:
            if bool((value != neutral).any()):
                result = graph.call_function(
                    function, (result, edit.add_buffer(self.gm, f"{name}_{what}", value.float()))
                )
        assert isinstance(result, fx.Node)
        self._finish(border, result)

    def _moves_into_threshold(self, reader: fx.Node, bias: torch.Tensor) -> bool:
        """Compare without what is added before a comparison with a constant, if nothing else reads the sum."""
        pack = sole_user(reader)
        if pack is None or not calls(pack, PACK) or pack.args[0] is not reader:
            return False
        threshold = pack.args[1]
        if not isinstance(threshold, fx.Node) or threshold.op != "get_attr":
            return False
        value = constant(self.gm, threshold).double()
        value = value.reshape((1,) * (4 - value.ndim) + tuple(value.shape)) - bias.reshape(1, -1, 1, 1)
        if not bool(value.isfinite().all()):
            return False
        with self.gm.graph.inserting_before(pack):
            pack.update_arg(1, edit.add_buffer(self.gm, f"{pack.name}_threshold", value.float()))
        return True

    def _matrix_product(self, border: Border) -> None:
        convolution = module_of(self.gm, border.reader)
        assert isinstance(convolution, nn.Conv2d)
        graph, target = self.gm.graph, str(border.reader.target)
        weight = convolution.weight.detach().flatten(1)
        bias = None if convolution.bias is None else convolution.bias.detach()
        last = border.reader
        batch_norm = sole_user(last)
        affine = affine_of(self.gm, batch_norm, 4)
        if batch_norm is not None and affine is not None:
            ones, zeros = weight.new_ones(len(weight)), weight.new_zeros(len(weight))
            factor, offset = affine.behind(ones, zeros if bias is None else bias)
            weight, bias = (weight * factor[:, None]).float(), offset.float()
            last = batch_norm
        stream = border.source.args[0]
        with graph.inserting_before(last):
            steps = [slice(None), *(slice(None, None, step) for step in convolution.stride)]
            if convolution.stride != (1, 1):
                stream = graph.call_function(operator.getitem, (stream, tuple(steps)))
            constants = [edit.add_buffer(self.gm, f"{target}_weight_folded", weight)]
            if bias is not None and not self._moves_into_sum(last, bias):
                # as a matrix with one row per pixel, which ONNX has in one operator with the bias
                constants.append(edit.add_buffer(self.gm, f"{target}_bias_folded", bias))
                stream = graph.call_function(torch.reshape, (stream, (-1, convolution.in_channels)))
            product = graph.call_function(F.linear, (stream, *constants))
            if len(constants) > 1:
                _, channels, height, width = self.context.shapes[border.reader]
                product = graph.call_function(torch.reshape, (product, (-1, height, width, channels)))
            self._finish(Border(border.source, last), product)
        if last is not border.reader:
            graph.erase_node(border.reader)
            self._erase()

    def _moves_into_sum(self, shortcut: fx.Node, bias: torch.Tensor) -> bool:
        """Add a shortcut's bias to that of the binary convolution that adds the shortcut, if it does so directly."""
        permutation = sole_user(shortcut)
        convolution = None if permutation is None else sole_user(permutation)
        packed = packed_op(convolution)
        if convolution is None or packed is None or packed.tensors[3:5] != ("bias", "residual"):
            return False  # nothing adds it; or an activation comes first
        own, residual = convolution.args[3:5]
        if residual is not permutation or not permutes(residual, TO_NHWC):
            return False
        value = constant(self.gm, own) + bias
        value = value.masked_fill(value == 0, NOTHING.item())
        with self.gm.graph.inserting_before(convolution):
            convolution.update_arg(3, edit.add_buffer(self.gm, f"{convolution.name}_bias", value))
        return True

    def _stream_of(self, node: fx.Node) -> fx.Node:
        """A map that is channels last: what a permutation to NCHW reads, or a permutation of an NCHW map."""
        if not permutes(node, TO_NCHW):
            known = next((user for user in node.users if permutes(user, TO_NHWC)), None)
            if known is not None:
                node.append(known)
                return known
            with self.gm.graph.inserting_after(node):
                return permute(node, TO_NHWC)
        stream = node.args[0]
        assert isinstance(stream, fx.Node)
        return stream

    def _finish(self, border: Border, result: fx.Node) -> None:
        """Put `result`, which is channels last, in the place of the reader."""
        reader = border.reader
        back = permute(result, TO_NCHW)
        if reader in self.context.shapes:
            self.context.shapes[back] = self.context.shapes[reader]
        name = reader.name
        reader.replace_all_uses_with(back)
        self._erase(reader)
        result.name = name

    def _erase(self, *nodes: fx.Node) -> None:
        """Erase nodes, and the permutations that nobody reads any more."""
        for node in nodes:
            self.gm.graph.erase_node(node)
        for node in list(self.gm.graph.nodes):
            if permutes(node, TO_NCHW) and not node.users:
                self.gm.graph.erase_node(node)


_NCHW = "[N, C, H, W]"
_REMEDY = (
    "use what works on either layout: activations, sums, torch.cat(..., 1), global average pooling, 1x1 convolutions"
)


def _lays_out(node: fx.Node) -> bool:
    """Whether a node puts a map in memory in the order of its axes."""
    return node.op == "call_method" and node.target == "contiguous"


def _is_ours(node: fx.Node) -> bool:
    """Whether a node calls a function of this package, or a packed operator."""
    return str(getattr(node.target, "__module__", "")).startswith(("bnnfx.", "torch._ops.bnnfx"))


def _reads_only(reader: fx.Node, source: fx.Node) -> bool:
    """Whether a node reads one value, and constants."""
    return all(operand is source or operand.op == "get_attr" for operand in reader.all_input_nodes)


def _is_mean(node: fx.Node) -> bool:
    """Whether a node is a mean that keeps the axes it averages over."""
    keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    return bool(keeps) and (calls(node, torch.mean) or (node.op == "call_method" and node.target == "mean"))


def _dims(node: fx.Node) -> object:
    """The argument `dim` of a call whose first argument is its tensor, or tensors."""
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    plain = convolution.groups == 1 and convolution.padding in ((0, 0), "valid")
    return plain and convolution.kernel_size == (1, 1)
