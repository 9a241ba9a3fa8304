"""Modules of torch that hide their layers, written out as modules that call them: attention, and transformer encoders.

What replaces a module of torch has its place, its submodules under their names, and computes the same. It is plain
code, which is traced: the linear layers in it are layers like any other. `nn.MultiheadAttention` has its projections as
one parameter, `in_proj_weight`; written out they are `in_proj`, one `nn.Linear` of three times the width, where query,
key and value are one tensor, and otherwise `q_proj`, `k_proj` and `v_proj`. The attention stays a float function.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from bnnfx.graph.inplace import home_of
from bnnfx.nn.batch_second import BatchSecond
from bnnfx.nn.one_node import one_node
from bnnfx.private_interfaces import has_hooks

PACKED = ("in_proj",)
SEPARATE = ("q_proj", "k_proj", "v_proj")


@one_node
def attention_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor) -> Tensor:
    """The two masks of `nn.MultiheadAttention` as one that is added to scores; zero where there is none.

    Args:
        attn_mask: `[L, S]` or `[N H, L, S]`; True, or -inf, where a query does not see a key.
        key_padding_mask: `[N, S]`, or `[S]` without a batch; likewise for a key that no query sees.
        query: `[N, H, L, D]`, or `[H, L, D]`.

    >>> attention_mask(torch.tensor([[False, True]]), None, torch.zeros(1, 1, 1, 4))
    tensor([[0., -inf]])
    """
    added: Tensor | None = None
    if attn_mask is not None:
        added = _added(attn_mask, query)
        if attn_mask.ndim == 3:
            added = added.reshape(*query.shape[:-2], *attn_mask.shape[1:])
    if key_padding_mask is not None:
        keys = _added(key_padding_mask, query)[..., None, None, :]
        added = keys if added is None else added + keys
    return query.new_zeros(1, 1) if added is None else added


def _added(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -math.inf)


class MultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` as linear layers around `F.scaled_dot_product_attention`.

    Args:
        whole: what it computes; the parameters are shared with it, but those of `q_proj`, `k_proj` and `v_proj`.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.dropout = whole.num_heads, whole.head_dim, whole.dropout
        self.batch_first = whole.batch_first
        weight, bias = whole.in_proj_weight, whole.in_proj_bias
        self.in_proj = _linear(weight, bias)
        for place, name in enumerate(SEPARATE):
            self.add_module(name, _linear(_third(weight, place), None if bias is None else _third(bias, place)))
        self.out_proj = _linear(whole.out_proj.weight, whole.out_proj.bias)
        self.order = BatchSecond()
        self.train(whole.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's; `is_causal` is a hint beside `attn_mask` there, and needs none here."""
        if query is key and key is value:
            projected = self.in_proj(query).chunk(3, -1)
        else:
            projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (self._heads(projected[place]) for place in range(3))
        masked = attn_mask is not None or key_padding_mask is not None
        mask = attention_mask(attn_mask, key_padding_mask, q) if masked else None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
            weights = F.softmax(scores if mask is None else scores + mask, -1)
            if self.dropout > 0:
                weights = F.dropout(weights, self.dropout, self.training)
            attended = weights @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        result = self.out_proj(self._together(attended))
        result = self.order(result) if self.batch_first else result
        if not need_weights:
            return result, None
        return result, weights.mean(-3) if average_attn_weights else weights

    def _heads(self, x: Tensor) -> Tensor:
        """To `[N, H, L, D]`; `[H, L, D]` without a batch."""
        heads = torch.unflatten(x, -1, (self.num_heads, self.head_dim))
        return heads.transpose(-3, -2) if self.batch_first else torch.movedim(heads, 0, -2)

    def _together(self, heads: Tensor) -> Tensor:
        rows = heads.transpose(-3, -2) if self.batch_first else torch.movedim(heads, -2, 0)
        return torch.flatten(rows, -2)


def _third(parameter: Tensor, place: int) -> nn.Parameter:
    """A parameter of its own with a part of the values of another."""
    return nn.Parameter(parameter.detach().chunk(3)[place].clone(), parameter.requires_grad)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with these parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


class TransformerEncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer` without its decisions about fast paths."""

    self_attn: nn.Module
    activation: Callable[[Tensor], Tensor]
    linear1: nn.Module
    linear2: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    dropout: nn.Module
    dropout1: nn.Module
    dropout2: nn.Module

    def __init__(self, whole: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.norm_first = whole.norm_first
        for name, child in whole.named_children():
            self.add_module(name, child)
        if not isinstance(whole.activation, nn.Module):
            self.activation = whole.activation
        self.training = whole.training

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As torch's where it takes no fast path."""
        if self.norm_first:
            x = src + self._attention(self.norm1(src), src_mask, src_key_padding_mask, is_causal)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(src + self._attention(src, src_mask, src_key_padding_mask, is_causal))
        result: Tensor = self.norm2(x + self._feed_forward(x))
        return result

    def _attention(self, x: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool) -> Tensor:
        attended = self.self_attn(
            x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False, is_causal=is_causal
        )
        result: Tensor = self.dropout1(attended[0])
        return result

    def _feed_forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
        return result


class TransformerEncoder(nn.Module):
    """`nn.TransformerEncoder` without nested tensors."""

    def __init__(self, whole: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = whole.layers, whole.norm
        self.training = whole.training

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """One layer after the other."""
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, is_causal)
        return src if self.norm is None else self.norm(src)


_REPLACED: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.MultiheadAttention: MultiheadAttention,
    nn.TransformerEncoderLayer: TransformerEncoderLayer,
    nn.TransformerEncoder: TransformerEncoder,
}


def kept_whole(module: nn.Module) -> str | None:
    """Why a module of a type that could be written out is not; None if it is, or of another type."""
    if type(module) not in _REPLACED:
        return None
    if has_hooks(module):
        return "it has hooks"
    if not isinstance(module, nn.MultiheadAttention):
        return None
    own = dict(module.named_parameters(recurse=False))
    if parametrize.is_parametrized(module) or parametrize.is_parametrized(module.out_proj):
        return "a weight of it is parametrized"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds keys and values of its own (add_bias_kv, add_zero_attn)"
    if "in_proj_weight" not in own:
        return "keys or values have another width than queries (kdim, vdim)"
    return None


class WrittenOut:
    """A model with what can be written out replaced, in place.

    Attributes:
        model: the model; another object where it is itself such a module.
        kept: why modules of these types were not replaced, by their paths.
    """

    def __init__(self, model: nn.Module, left: Collection[str]) -> None:
        self.model = model
        self.kept: dict[str, str] = {}
        self._originals: dict[str, nn.Module] = {}
        found = [(path, module) for path, module in model.named_modules() if type(module) in _REPLACED]
        # what torch's other modules are made of is not traced, either
        whole = [path for path, module in model.named_modules() if _is_whole(module)]
        for path, module in reversed(found):  # what is inside first
            reason = kept_whole(module)
            if reason is not None:
                self.kept[path] = reason
            elif not any(_is_in(path, other) for other in (*left, *whole)):
                self._originals[path] = module
                self._put(path, _REPLACED[type(module)](module))

    def restore(self, path: str) -> None:
        """Put back torch's own modules from this one on, which is kept whole."""
        inside = [name for name in self._originals if _is_in(name, path)]
        for name in reversed(inside):  # what is outside first
            self._put(name, self._originals.pop(name))

    def called_both_ways(self, called: Collection[str]) -> Iterator[str]:
        """The attention modules that are called with one tensor and with several."""
        for path in self._originals:
            names = ["".join((path, "." if path else "", name)) for name in (*PACKED, *SEPARATE)]
            if {*names} <= {*called}:
                yield path

    def renamed(self, gm: fx.GraphModule) -> dict[str, tuple[str, ...]]:
        """Which parameters of the graph a parameter of the float model became, in parts of equal size along axis 0."""
        present = dict(gm.named_parameters(remove_duplicate=False))
        found = {}
        for path in self._originals:
            before = f"{path}." if path else ""
            for kind in ("weight", "bias"):
                for names in (PACKED, SEPARATE):
                    new = tuple(f"{before}{name}.{kind}" for name in names)
                    if {*new} <= present.keys():
                        found[f"{before}in_proj_{kind}"] = new
        return found

    def _put(self, path: str, module: nn.Module) -> None:
        if not path:
            self.model = module
            return
        parent, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, module)


def layers_of(path: str, module: nn.Module, gm: fx.GraphModule | None) -> Iterator[tuple[str, str]]:
    """The layers, by path and type, of an attention module that is written out in a graph; none of any other module."""
    if type(module) is nn.MultiheadAttention and gm is not None:
        before = f"{path}." if path else ""
        present = {name for name, _ in gm.named_modules()}
        for name in (*PACKED, *SEPARATE):
            if f"{before}{name}" in present:
                yield f"{before}{name}", nn.Linear.__name__


def _is_whole(module: nn.Module) -> bool:
    """Whether it is a module of torch that is called as a whole."""
    container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return home_of(module) == "torch" and type(module) not in _REPLACED and not container


def _is_in(path: str, outer: str) -> bool:
    return path == outer or not outer or path.startswith(f"{outer}.")
