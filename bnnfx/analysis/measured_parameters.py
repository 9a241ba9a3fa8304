"""Which parameters of a model can be measured."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bnnfx.errors import AnalysisError
from bnnfx.nn import ActivationBinarizer, BinaryLayer

LATENT = (
    "its forward pass takes the sign of this weight, so a shift by epsilon changes nothing unless a sign flips: "
    "the discrete gradient is that of float weights. Measure the network with float weights and quantized activations"
)


def binary_layers(model: nn.Module, function: str) -> dict[str, BinaryLayer]:
    """The binary layers by qualified name, each once.

    Raises:
        ValueError: there is none, or one without values.
    """
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    found = {name: m for name, m in modules if isinstance(m, BinaryLayer)}
    if not found:
        raise ValueError(
            f"{function} needs binary layers, and this {type(model).__name__} has none; bnnfx.convert makes them."
        )
    valueless = [name for name, layer in found.items() if layer.weight.is_meta]
    if valueless:
        raise ValueError(f"{function} looks at values, and the weight of {valueless[0]!r} is on the device meta.")
    return found


@torch.no_grad()
def current_signs(layer: BinaryLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Prepared weight, signs and scale of the next forward pass, without the projection that training would do."""
    prepared = layer.binarizer.prepare(layer.weight)
    signs, scale = layer.binarizer(prepared)
    return prepared, signs, scale


def named_parameters(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The float parameters that a user named, by parameter or by layer (then its `weight`).

    Raises:
        ValueError: there is no such parameter, or it is the latent weight of a binary layer.
    """
    known, latent = dict(model.named_parameters(remove_duplicate=False)), _latent_weights(model)
    chosen = {}
    for name in names:
        full = name if name in known else f"{name}.weight" if name else "weight"
        if full not in known or not known[full].is_floating_point():
            floats = [other for other, p in known.items() if p.is_floating_point() and p not in latent]
            raise ValueError(f"There is no float parameter {name!r}; those that can be measured are: {floats}.")
        if known[full] in latent:
            raise ValueError(f"{full!r} belongs to a binary layer: {LATENT}.")
        chosen[full] = known[full]
    return chosen


def weights_before_binarizers(
    model: nn.Module, forward: Callable[[], object]
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """The float weights (two axes or more) that activation binarizers depend on, as the graph of autograd has them.

    Args:
        model: all its parameters ask for gradients.
        forward: runs it once.

    Returns:
        The weights, and the latent weights of binary layers that were left out, with the reason.

    Raises:
        AnalysisError: there is no such weight.
    """
    seen: list[Tensor] = []
    quantizers = [module for module in model.modules() if isinstance(module, ActivationBinarizer)]
    handles = [q.register_forward_pre_hook(lambda module, given: seen.append(given[0])) for q in quantizers]
    try:
        with torch.enable_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.is_floating_point()}
    upstream = dict.fromkeys(weights, False)
    differentiable = [x.sum() for x in seen if x.requires_grad]
    if differentiable and weights:
        # connections of the graph alone: a surrogate that is 0 everywhere still connects
        found = torch.autograd.grad(differentiable, list(weights.values()), allow_unused=True)
        upstream = {name: gradient is not None for name, gradient in zip(weights, found, strict=True)}
    latent = _latent_weights(model)
    skipped = {name: LATENT for name, p in weights.items() if upstream[name] and p in latent}
    chosen = {name: p for name, p in weights.items() if upstream[name] and p not in latent}
    if not chosen:
        what = f"only 1-bit ones ({', '.join(skipped)})" if skipped else "none"
        raise AnalysisError(
            f"gradient_mismatch looks for float weights that {len(quantizers)} activation binarizers depend on and "
            f"finds {what}. Name the parameters with layers=[...], or give a model with float weights."
        )
    return chosen, skipped


def _latent_weights(model: nn.Module) -> set[nn.Parameter]:
    return {m.weight for m in model.modules() if isinstance(m, BinaryLayer)}
