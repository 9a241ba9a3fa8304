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
from bnnfx.graph.record import Refusal, Role
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
        left: what is not taken over, and why.
    """

    convolution: fx.Node
    stream: fx.Node
    before: _Absorbed | None = None
    residual: fx.Node | None = None
    after: _Absorbed | None = None
    packs: list[fx.Node] = field(default_factory=list)
    left: list[Refusal] = field(default_factory=list)


class FuseEpilogueIntoConvolution(Pass[LowerContext, fx.Node, Fusion]):
    """Before: `y = act(binary_conv2d(...) + residual); bits = pack(y, t)`. After: one `binary_conv2d_<steps>`.

    The fused operator reads and writes float streams channels last, so it stands between two permutations;
    `KeepChannelsLast` removes those that meet. Every convolution is rewritten, if only to its plain form; where a step
    is left behind, a note says which and why.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED
    role = Role.FUSES

    def match(self) -> Iterator[fx.Node]:
        """Every convolution that still gives floats."""
        yield from [node for node in self.gm.graph.nodes if calls(node, CONVOLUTION)]

    def allowed(self, match: fx.Node) -> Fusion:
        """Always; the plan is the longest run of steps behind it."""
        fusion = Fusion(match, match)
        while (user := sole_user(fusion.stream)) is not None:
            activation = self._activation(fusion)
            if activation is not None:
                slot = "before" if fusion.residual is None else "after"
                if getattr(fusion, slot) is not None:
                    reason = f"'{user.name}' is a second activation in a row, so it stays a node"
                    fusion.left.append(Refusal(reason, "drop one of them"))
                    break
                setattr(fusion, slot, activation)
                fusion.stream = activation.last
            elif is_add(user) and fusion.residual is None:
                residual = next(operand for operand in user.all_input_nodes if operand is not fusion.stream)
                shape = self.context.shapes[match]
                if len(shape) != 4 or self.context.shapes.get(residual) != shape:
                    reason = f"'{user.name}' adds a map of another shape, so it stays a node"
                    fusion.left.append(Refusal(reason, "add maps [N, C, H, W] of one shape"))
                    break
                if not depends_on_input(residual):
                    reason = f"'{user.name}' adds one map to every sample, so it stays a node"
                    remedy = "let it vary by channel only: a batch norm's or a convolution's bias does that"
                    fusion.left.append(Refusal(reason, remedy))
                    break
                fusion.residual, fusion.stream = residual, user
            else:
                break
        stopped = bool(fusion.left)
        self._take_packs(fusion)
        if not stopped:
            self._say_what_is_left(fusion)
        return fusion

    def rewrite(self, match: fx.Node, plan: Fusion) -> None:
        """Emit the fused operator behind the last step that it takes over."""
        graph, convolution = self.gm.graph, match
        for left in plan.left:
            self.note(convolution.name, left.reason, left.remedy, self.context.layers_of(convolution))
        bits, weight, scale, bias = convolution.args[:4]
        attributes, copies = shared_by(convolution)
        readers = [user for user in plan.stream.users if user not in plan.packs]
        wanted = {"float": bool(readers), "bits": bool(plan.packs)}
        epilogue = Epilogue(
            plan.before.step.name if plan.before else "",
            plan.residual is not None,
            plan.after.step.name if plan.after else "",
            tuple(output for output, is_wanted in wanted.items() if is_wanted),
            copies,
        )
        with graph.inserting_before(plan.stream.next):
            if torch.equal(constant(self.gm, bias), NOTHING):
                bias = edit.add_buffer(self.gm, f"{convolution.name}_bias", NOTHING.clone())
            tensors = [*self._buffers(convolution, plan.before)]
            if plan.residual is not None:
                tensors.append(permute(plan.residual, TO_NHWC))
            tensors += self._buffers(convolution, plan.after)
            if plan.packs:
                threshold = constant(self.gm, plan.packs[0].args[1]).flatten()
                tensors.append(edit.add_buffer(self.gm, f"{plan.packs[0].name}_threshold", threshold))
            fused = graph.call_function(
                FUSED_CONV2D[epilogue].target, (bits, weight, scale, bias, *tensors, *attributes)
            )
            results = [fused]
            if len(epilogue.outputs) > 1:
                results = [graph.call_function(operator.getitem, (fused, index)) for index in (0, 1)]
            stream = permute(results[0], TO_NCHW) if wanted["float"] else None
        for pack in plan.packs:
            if pack is not plan.packs[0]:
                self.context.let_stand(pack.name, plan.packs[0].name)
            pack.replace_all_uses_with(results[-1])
            graph.erase_node(pack)
        if stream is not None:
            self.context.shapes[stream] = self.context.shapes[convolution]
            plan.stream.replace_all_uses_with(stream)
        graph.eliminate_dead_code()  # the steps that were taken over
        fused.name = convolution.name
        if len(results) > 1:
            results[0].name = f"{convolution.name}_stream"
        if plan.packs:
            results[-1].name = plan.packs[0].name  # bits keep their name to the end

    def subject(self, match: fx.Node) -> str:
        """The convolution's node name."""
        return match.name

    def _buffers(self, convolution: fx.Node, activation: _Absorbed | None) -> list[fx.Node]:
        if activation is None:
            return []
        pairs = zip(activation.step.constants, activation.constants, strict=True)
        return [edit.add_buffer(self.gm, f"{convolution.name}_{name}", value) for name, value in pairs]

    def _say_what_is_left(self, fusion: Fusion) -> None:
        user = sole_user(fusion.stream)
        if user is not None and not calls(user, PACK) and user.op != "output" and not _only_moves_values(user):
            what = str(user.target) if user.op == "call_module" else user.name
            reason = f"'{what}' behind it is no step of an epilogue, so it stays a node"
            kinds = ", ".join(kind for step in STEPS.values() for kind in step.made_from)
            remedy = f"use only what is: an activation ({kinds}), one sum, another activation, a comparison"
            fusion.left.append(Refusal(reason, remedy))

    def _take_packs(self, fusion: Fusion) -> None:
        """Find the readers that compare the stream with one and the same constant per channel."""
        packs = fusion.packs
        for user in fusion.stream.users:
            if not calls(user, PACK) or user.args[0] is not fusion.stream:
                continue
            threshold = user.args[1]
            if not (isinstance(threshold, fx.Node) and threshold.op == "get_attr"):
                refusal = Refusal(
                    "is compared with a threshold that the activations give at run time (centring)",
                    "convert without centring: Config(options={'centre': False})",
                )
            elif not self._is_per_channel(constant(self.gm, threshold), fusion):
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
            fusion.left.append(replace(refusal, reason=reason))

    def _is_per_channel(self, value: torch.Tensor, fusion: Fusion) -> bool:
        channels = self.context.shapes[fusion.convolution][1]  # no step changes the shape
        sizes = [1] * (4 - value.ndim) + list(value.shape)
        fits = value.numel() == 1 or sizes == [1, channels, 1, 1]
        return value.dtype == torch.float32 and value.ndim <= 4 and fits

    def _activation(self, fusion: Fusion) -> _Absorbed | None:
        """The step that alone reads the stream: a module that is one, perhaps with the shifts around it."""
        last, shift_before = self._shift(fusion, fusion.stream)
        user = sole_user(last)
        found = step_of(module_of(self.gm, user))
        if user is None or found is None:
            return None
        step, values = found
        constants = [torch.as_tensor(value, dtype=torch.float32).detach().reshape(-1).clone() for value in values]
        shifted = with_shifts(step)
        if shifted is None:
            return _Absorbed(step, constants, user) if shift_before is None else None
        last, shift_after = self._shift(fusion, user)
        if shift_before is None and shift_after is None:
            return _Absorbed(step, constants, last)
        before, after = (
            NOTHING.clone() if shift is None or torch.equal(shift, NOTHING) else shift
            for shift in (shift_before, shift_after)
        )
        return _Absorbed(shifted, [before, *constants, after], last)

    def _shift(self, fusion: Fusion, stream: fx.Node) -> tuple[fx.Node, torch.Tensor | None]:
        """The sum with a constant per channel that alone reads `stream`, if there is one."""
        user = sole_user(stream)
        if user is None or not calls(user, operator.add):
            return stream, None
        constants = [a for a in user.args if isinstance(a, fx.Node) and a.op == "get_attr"]
        if len(constants) != 1:
            return stream, None
        value = constant(self.gm, constants[0])
        return (user, value.flatten()) if self._is_per_channel(value, fusion) else (stream, None)


def _only_moves_values(node: fx.Node) -> bool:
    """A view, or the permutation of a residual that another convolution adds."""
    return is_view(node) or permutes(node, TO_NHWC)
