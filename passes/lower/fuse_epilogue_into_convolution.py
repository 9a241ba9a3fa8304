"""What follows an accumulator on its float stream, into the node of the convolution."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.chain import CONVOLUTION, PACK, shared_by
from bnnfx.graph.channels_last import TO_NCHW, TO_NHWC, permute, permutes
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls, constant, depends_on_input, is_add, is_view, module_of, sole_user
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.ops.epilogue import Epilogue
from bnnfx.ops.fused_conv2d import FUSED_CONV2D, NOTHING
from bnnfx.ops.steps import STEPS, Step, step_of, with_shifts


@dataclass
class _Absorbed:
    """A step of the epilogue: its constants, and the node behind which the stream goes on."""

    step: Step
    constants: list[torch.Tensor]
    last: fx.Node


@dataclass
class Fusion:
    """A convolution and what was found behind it so far.

    Attributes:
        convolution: the packed convolution.
        stream: the node whose value the fused operator will give.
        before: the activation in front of the sum, or the only one.
        residual: what is added, or None.
        after: the activation behind the sum.
        packs: the comparisons of the stream with one constant threshold per channel.
    """

    convolution: fx.Node
    stream: fx.Node
    before: _Absorbed | None = None
    residual: fx.Node | None = None
    after: _Absorbed | None = None
    packs: list[fx.Node] = field(default_factory=list)


class FuseEpilogueIntoConvolution(Pass[LowerContext, Fusion]):
    """Before: `y = act(binary_conv2d(...) + residual); bits = pack(y, t)`. After: one `binary_conv2d_<steps>`.

    The fused operator reads and writes float streams channels last, so it stands between two permutations;
    `KeepChannelsLast` removes those that meet. Every convolution is rewritten, if only to its plain form; where a step
    is left behind, a note says which and why.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED

    def match(self) -> Iterator[Fusion]:
        """Every convolution that still gives floats, with the longest run of steps behind it."""
        for node in [node for node in self.gm.graph.nodes if calls(node, CONVOLUTION)]:
            yield self._follow(node)

    def rewrite(self, match: Fusion) -> None:
        """Emit the fused operator behind the last step that it takes over."""
        graph, convolution = self.gm.graph, match.convolution
        bits, weight, scale, bias = convolution.args[:4]
        attributes, copies = shared_by(convolution)
        readers = [user for user in match.stream.users if user not in match.packs]
        wanted = {"float": bool(readers), "bits": bool(match.packs)}
        epilogue = Epilogue(
            match.before.step.name if match.before else "",
            match.residual is not None,
            match.after.step.name if match.after else "",
            tuple(output for output, is_wanted in wanted.items() if is_wanted),
            copies,
        )
        with graph.inserting_before(match.stream.next):
            if torch.equal(constant(self.gm, bias), NOTHING):
                bias = edit.add_buffer(self.gm, f"{convolution.name}_bias", NOTHING.clone())
            tensors = [*self._buffers(convolution, match.before)]
            if match.residual is not None:
                tensors.append(permute(match.residual, TO_NHWC))
            tensors += self._buffers(convolution, match.after)
            if match.packs:
                threshold = constant(self.gm, match.packs[0].args[1]).flatten()
                tensors.append(edit.add_buffer(self.gm, f"{match.packs[0].name}_threshold", threshold))
            fused = graph.call_function(
                FUSED_CONV2D[epilogue].target, (bits, weight, scale, bias, *tensors, *attributes)
            )
            results = [fused]
            if len(epilogue.outputs) > 1:
                results = [graph.call_function(operator.getitem, (fused, index)) for index in (0, 1)]
            stream = permute(results[0], TO_NCHW) if wanted["float"] else None
        for pack in match.packs:
            pack.replace_all_uses_with(results[-1])
            graph.erase_node(pack)
        if stream is not None:
            self.context.shapes[stream] = self.context.shapes[match.stream]
            match.stream.replace_all_uses_with(stream)
        graph.eliminate_dead_code()  # the steps that were taken over
        fused.name = convolution.name
        if len(results) > 1:
            results[0].name = f"{convolution.name}_stream"
        if match.packs:
            results[-1].name = match.packs[0].name  # bits keep their name to the end

    def subject(self, match: Fusion) -> str:
        """The convolution's node name."""
        return match.convolution.name

    def _buffers(self, convolution: fx.Node, activation: _Absorbed | None) -> list[fx.Node]:
        if activation is None:
            return []
        pairs = zip(activation.step.constants, activation.constants, strict=True)
        return [edit.add_buffer(self.gm, f"{convolution.name}_{name}", value) for name, value in pairs]

    def _follow(self, convolution: fx.Node) -> Fusion:
        fusion, noted = Fusion(convolution, convolution), len(self.report.notes)
        while (user := sole_user(fusion.stream)) is not None:
            activation = self._activation(fusion.stream)
            if activation is not None:
                slot = "before" if fusion.residual is None else "after"
                if getattr(fusion, slot) is not None:
                    reason = f"'{user.name}' is a second activation in a row, so it stays a node"
                    self._leave(convolution, Refusal(reason, "drop one of them"))
                    break
                setattr(fusion, slot, activation)
                fusion.stream = activation.last
            elif is_add(user) and fusion.residual is None:
                residual = next(operand for operand in user.all_input_nodes if operand is not fusion.stream)
                shapes = [self.context.shapes.get(node) for node in (residual, fusion.stream)]
                if shapes[0] is None or shapes[0] != shapes[1] or len(shapes[0]) != 4:
                    reason = f"'{user.name}' adds a map of another shape, so it stays a node"
                    self._leave(convolution, Refusal(reason, "add maps [N, C, H, W] of one shape"))
                    break
                if not depends_on_input(residual):
                    reason = f"'{user.name}' adds one map to every sample, so it stays a node"
                    remedy = "let it vary by channel only: a batch norm's or a convolution's bias does that"
                    self._leave(convolution, Refusal(reason, remedy))
                    break
                fusion.residual, fusion.stream = residual, user
            else:
                break
        explained = len(self.report.notes) > noted
        fusion.packs = self._packs(fusion)
        if not explained:
            self._note_rest(fusion)
        return fusion

    def _note_rest(self, fusion: Fusion) -> None:
        user = sole_user(fusion.stream)
        if user is not None and not calls(user, PACK) and user.op != "output" and not _only_moves_values(user):
            what = str(user.target) if user.op == "call_module" else user.name
            reason = f"'{what}' behind it is no step of an epilogue, so it stays a node"
            kinds = ", ".join(kind for step in STEPS.values() for kind in step.made_from)
            remedy = f"use only what is: an activation ({kinds}), one sum, another activation, a comparison"
            self._leave(fusion.convolution, Refusal(reason, remedy))

    def _leave(self, convolution: fx.Node, refusal: Refusal) -> None:
        """Note a step behind a convolution that is not taken over."""
        self.note(convolution.name, refusal.reason, refusal.remedy, self.context.layers_of(convolution))

    def _packs(self, fusion: Fusion) -> list[fx.Node]:
        """The readers that compare the stream with one and the same constant per channel."""
        packs: list[fx.Node] = []
        for user in fusion.stream.users:
            if not calls(user, PACK) or user.args[0] is not fusion.stream:
                continue
            threshold = user.args[1]
            if not (isinstance(threshold, fx.Node) and threshold.op == "get_attr"):
                refusal = Refusal(
                    "is compared with a threshold that the activations give at run time (centring)",
                    "convert without centring: Config(options={'centre': False})",
                )
            elif not self._is_per_channel(constant(self.gm, threshold), fusion.stream):
                refusal = Refusal(
                    "is compared with a threshold that is not one number per channel",
                    "use a binarizer whose threshold is one number per channel",
                )
            elif packs and not torch.equal(constant(self.gm, threshold), constant(self.gm, packs[0].args[1])):
                refusal = Refusal("is compared with a second threshold", "give all that read the stream one threshold")
            else:
                packs.append(user)
                continue
            reason = f"its stream {refusal.reason} by '{user.name}', so that stays a node"
            self._leave(fusion.convolution, replace(refusal, reason=reason))
        return packs

    def _is_per_channel(self, value: torch.Tensor, stream: fx.Node) -> bool:
        shape = self.context.shapes.get(stream)
        if value.dtype != torch.float32 or shape is None:
            return False
        sizes = [1] * (4 - value.ndim) + list(value.shape)
        return value.ndim <= 4 and (value.numel() == 1 or sizes == [1, shape[1], 1, 1])

    def _activation(self, stream: fx.Node) -> _Absorbed | None:
        """The step that alone reads a stream: a module that is one, perhaps with the shifts around it."""
        last, shift_before = self._shift(stream)
        user = sole_user(last)
        found = step_of(module_of(self.gm, user))
        if user is None or found is None:
            return None
        step, values = found
        constants = [torch.as_tensor(value, dtype=torch.float32).detach().reshape(-1).clone() for value in values]
        shifted = with_shifts(step)
        if shifted is None:
            return _Absorbed(step, constants, user) if shift_before is None else None
        last, shift_after = self._shift(user)
        if shift_before is None and shift_after is None:
            return _Absorbed(step, constants, last)
        before, after = (
            NOTHING.clone() if shift is None or torch.equal(shift, NOTHING) else shift
            for shift in (shift_before, shift_after)
        )
        return _Absorbed(shifted, [before, *constants, after], last)

    def _shift(self, stream: fx.Node) -> tuple[fx.Node, torch.Tensor | None]:
        """The sum with a constant per channel that alone reads a stream, if there is one."""
        user = sole_user(stream)
        if user is None or not calls(user, operator.add):
            return stream, None
        constants = [a for a in user.args if isinstance(a, fx.Node) and a.op == "get_attr"]
        if len(constants) != 1:
            return stream, None
        value = constant(self.gm, constants[0])
        self.context.shapes.setdefault(user, self.context.shapes.get(stream, torch.Size()))
        return (user, value.flatten()) if self._is_per_channel(value, stream) else (stream, None)


def _only_moves_values(node: fx.Node) -> bool:
    """A view, or the permutation of a residual that another convolution adds."""
    return is_view(node) or permutes(node, TO_NHWC)
