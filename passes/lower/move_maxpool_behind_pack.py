"""Max-pooling of an accumulator's floats to pooling of bits, so that the threshold in front of it can fold."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from bnnfx.graph import edit
from bnnfx.graph.chain import CONVOLUTION, PACK, is_per_channel, monotone_directions, upstream
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import calls, constant, is_view, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.numerics.bits import pack_bits


@dataclass
class PooledBits:
    """A `pack`, the max-pool nearest before it, what stands between (nearest to the pool first), and their source."""

    pack: fx.Node
    pool: fx.Node
    between: list[fx.Node]
    source: fx.Node


class MoveMaxPoolBehindPack(Pass[LowerContext, PooledBits, None]):
    """Before: `pack(f(maxpool(x)))`. After: `max_pool2d(pack(f(x)), and_mask)`.

    Per channel, a bit of a rising f of the maximum is the OR of the bits, of a falling one the AND: `and_mask` says
    which.
    """

    requires = Stage.PACKED
    ensures = Stage.PACKED

    def match(self) -> Iterator[PooledBits]:
        """Packs behind a max-pool; asked again, for a chain with several pools."""
        for pack in [node for node in self.gm.graph.nodes if calls(node, PACK)]:
            while (found := self._find(pack)) is not None:
                yield found
                if found.pool in set(self.gm.graph.nodes):
                    break  # refused

    def allowed(self, match: PooledBits) -> Refusal | None:
        """A packed convolution must feed the pool, nobody else read its floats, and each step behind it be monotone."""
        if not calls(match.source, CONVOLUTION):
            return Refusal(f"'{match.source.name}' gives it floats, which are fewer to pack once they are pooled")
        for node in (match.pool, *match.between):
            if len(node.users) != 1:
                return Refusal(
                    f"'{node.name}' is also read as float, so pooling stays on floats",
                    f"let '{node.name}' have one reader, the binary layer",
                )
        for node in match.between:
            if monotone_directions(self.gm, node, self.context.shapes) is None:
                return Refusal(
                    f"'{node.name}' between pool and sign may rise and fall, so pooling stays on floats",
                    "use an activation that only rises, such as nn.Hardtanh (a PReLU with a slope below 0 does not)",
                )
        if self._sees_only_padding(match.pool):
            return Refusal(
                "its dilated windows see nothing but padding somewhere, so pooling stays on floats",
                "use less padding, dilation=1, or a larger map",
            )
        return None

    def rewrite(self, match: PooledBits, plan: None) -> None:
        """Take the pool out, and put the pool of bits behind the pack."""
        pool, pack, graph = module_of(self.gm, match.pool), match.pack, self.gm.graph
        assert isinstance(pool, nn.MaxPool2d)
        match.pool.replace_all_uses_with(match.pool.all_input_nodes[0])
        graph.erase_node(match.pool)
        direction = torch.tensor(1.0)
        for node in match.between:
            step = monotone_directions(self.gm, node, self.context.shapes)
            assert step is not None
            direction = direction * step
        channels = self._channels(pack)
        mask = torch.from_numpy(pack_bits((direction < 0).expand(channels).numpy()))
        name = pack.name
        with graph.inserting_after(pack):
            buffer = edit.add_buffer(self.gm, f"{name}_and_mask", mask)
        with graph.inserting_after(buffer):
            arguments = (pack, buffer, *_attributes(pool))
            pooled = graph.call_function(torch.ops.bnnfx.max_pool2d.default, arguments)
        pack.replace_all_uses_with(pooled, delete_user_cb=lambda user: user is not pooled)
        edit.take_name(pooled, pack, "unpooled")

    def subject(self, match: PooledBits) -> str:
        """The pool's qualified name."""
        return str(match.pool.target)

    def layers(self, match: PooledBits) -> tuple[str, ...]:
        """The layer whose floats are pooled."""
        return self.context.layers_of(match.source)

    def _find(self, pack: fx.Node) -> PooledBits | None:
        between: list[fx.Node] = []
        pool = None
        for node in upstream(pack):
            module = module_of(self.gm, node)
            if isinstance(module, nn.MaxPool2d) and not module.return_indices:
                pool = pool or node
            elif calls(node, CONVOLUTION) or not is_per_channel(self.gm, node, self.context.shapes):
                return None if pool is None else PooledBits(pack, pool, between[::-1], node)
            elif pool is None and is_view(node):
                return None  # a view of the pooled 1x1 map would be one of the larger map
            elif pool is None:
                between.append(node)
        return None

    def _sees_only_padding(self, pool: fx.Node) -> bool:
        """Whether some window holds no value of the map: its maximum is -inf, which no bit stands for."""
        module, source = module_of(self.gm, pool), pool.all_input_nodes[0]
        assert isinstance(module, nn.MaxPool2d)
        return not bool(module(torch.zeros(1, *self.context.shapes[source][2:])).isfinite().all())

    def _channels(self, pack: fx.Node) -> int:
        convolution = next(node for node in upstream(pack) if calls(node, CONVOLUTION))
        return len(constant(self.gm, convolution.args[2]))


def _attributes(pool: nn.MaxPool2d) -> list[Any]:
    """kernel_shape, strides, pads, dilations as pairs (rows, columns), and ceil_mode."""
    values = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return [*([v, v] if isinstance(v, int) else list(v) for v in values), int(pool.ceil_mode)]
