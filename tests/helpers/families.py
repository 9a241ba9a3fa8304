"""Public families of classifiers, one small member each: what a user of torchvision and timm may bring."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import bnnfx
from bnnfx._torchvision import import_torchvision
from helpers.outcomes import (
    canonical_graphs,
    check_bits_vary,
    check_canonical,
    check_file,
    check_halves,
    refusals,
)

TORCHVISION = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
)

TIMM = (
    "bat_resnext26ts",
    "botnet26t_256",
    "caformer_s18",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "coatnet_nano_rw_224",
    "convnext_atto",
    "convnextv2_atto",
    "cs3darknet_focus_s",
    "cspresnet50",
    "darknet53",
    "deit_tiny_patch16_224",
    "densenet121",
    "densenetblur121d",
    "dla46_c",
    "eca_nfnet_l0",
    "dpn68",
    "ecaresnet26t",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
    "ese_vovnet19b_slim_dw",
    "fastvit_t8",
    "fbnetc_100",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gernet_s",
    "ghostnet_050",
    "halonet26t",
    "hardcorenas_a",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "inception_next_atto",
    "inception_v3",
    "inception_v4",
    "lambda_resnet26t",
    "lcnet_050",
    "levit_128s",
    "mambaout_femto",
    "maxvit_pico_rw_256",
    "mixer_s32_224",
    "mixnet_s",
    "mnasnet_small",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nest_tiny",
    "nf_regnet_b0",
    "poolformer_s12",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "regnety_002",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m0_9",
    "res2net50_14w_8s",
    "resnest14d",
    "resnet10t",
    "resnetv2_18",
    "resnext26ts",
    "rexnet_100",
    "selecsls42",
    "semnasnet_050",
    "seresnext26ts",
    "shvit_s1",
    "skresnet18",
    "spnasnet_100",
    "starnet_s050",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_ns_224",
    "tinynet_e",
    "tiny_vit_5m_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11_bn",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "xception41",
    "xcit_nano_12_p16_224",
)

FAST: dict[str, dict[str, float]] = {
    "timm.test_byobnet": {},
    "timm.test_convnext": {"drop_path_rate": 0.3},
    "timm.test_efficientnet": {"drop_path_rate": 0.3, "drop_rate": 0.3},
    "timm.test_mambaout": {},
    "timm.test_resnet": {},
}
"""Members made for tests, each with what it is built with: batch norms with an activation inside, drop paths ..."""

FAMILIES = tuple(f"torchvision.{name}" for name in TORCHVISION) + tuple(f"timm.{name}" for name in TIMM)


def build(name: str, **kwargs: Any) -> nn.Module:
    """A model with random weights, by its library and its name there.

    Raises:
        ImportError: the library is not installed.
    """
    library, _, model = name.partition(".")
    import_torchvision()
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return timm.create_model(model, **kwargs)
    from torchvision import models

    initialized = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
    return models.get_model(model, weights=None, **initialized, **kwargs)


def _untimed(step: str, call: Callable[[], Any]) -> Any:
    return call()


def check_model(
    model: nn.Module,
    x: Tensor,
    training: bool,
    exported: list[fx.GraphModule] | None,
    timed: Callable[[str, Callable[[], Any]], Any] = _untimed,
) -> str:
    """Convert a model in one mode and compare what comes of it; gives the recorded refusals, "" for none.

    Args:
        model: any classifier.
        x: a batch of images.
        training: whether it is converted in training.
        exported: the packed graphs whose files were compared; grows by this one's, if it is another. None if it is to
            be converted only.
        timed: calls the steps, each by its name.
    """
    with canonical_graphs() as canonical:
        gm = timed("convert", lambda: bnnfx.convert(model.train(training), "xnor", example_inputs=(x,)))
    timed("compare", lambda: _check_converted(canonical[-1], gm, model, x, training))
    if exported is not None:
        timed("calibrate", lambda: bnnfx.calibrate(gm.eval(), [x]))
        packed = timed("lower", lambda: bnnfx.lower(gm, (x,)))
        if not any(_same(packed, other) for other in exported):
            with tempfile.TemporaryDirectory() as folder:
                file = timed("export", lambda: bnnfx.export_onnx(packed, Path(folder) / "model.onnx"))
                timed("verify", lambda: check_file(packed, file, x))
            exported.append(packed)
    return refusals(gm)


def _check_converted(
    canonical: fx.GraphModule, gm: fx.GraphModule, model: nn.Module, x: Tensor, training: bool
) -> None:
    # converted in eval(), a graph has one side of each `if self.training`: that is no fault of the operators
    check_canonical(canonical, model, x, (False, True) if training else (False,))
    check_halves(canonical, model, x)
    check_bits_vary(gm, x)


def _same(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    """Whether two graphs are the same calls with the same constants, and so make the same file."""
    x, y = a.state_dict(), b.state_dict()
    modules = [{path: repr(module) for path, module in gm.named_modules() if path} for gm in (a, b)]
    return (
        str(a.graph) == str(b.graph)
        and modules[0] == modules[1]
        and x.keys() == y.keys()
        and all(torch.equal(x[key], y[key]) for key in x)
    )
