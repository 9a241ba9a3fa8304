"""The compiler's entry points: `convert`, `split`, `lower`, and `export`."""

import keyword
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from bnnfx import pipelines
from bnnfx.arguments import require_flag
from bnnfx.backends import TARGETS, require_dialect
from bnnfx.config import Config
from bnnfx.errors import ConversionError, ExportError
from bnnfx.file_writing import require_folder, write_whole
from bnnfx.frontend.check_values import first_difference
from bnnfx.frontend.functions import Functions
from bnnfx.frontend.hooks import changing_hooks, hooked, require_evaluation, require_looking, settle_hooks
from bnnfx.frontend.not_kept import not_kept
from bnnfx.frontend.trace import trace, weight_layers
from bnnfx.graph.constant_bits import count_bits, note_constant_bits
from bnnfx.graph.context import ConvertContext, LowerContext
from bnnfx.graph.given_models import copy_of, plain_attributes, require_module
from bnnfx.graph.pass_runner import run_passes
from bnnfx.graph.record import PassReport, Record, Role, attach, record_of, require_stage
from bnnfx.graph.shapes import as_tensors, infer_shapes, require_arguments, tensors_if_given
from bnnfx.graph.stage import Stage, require_two_levels
from bnnfx.nn import ActivationBinarizer
from bnnfx.passes.split.split_activations import SplitActivations
from bnnfx.schemes import get_scheme
from bnnfx.verification.checks import check_file, check_rewritten, is_whole, run_trainable


def convert(
    model: nn.Module,
    scheme: str,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    config: Config | None = None,
    check: bool = True,
) -> fx.GraphModule:
    """Rewrite a float model into a trainable binary one; the model itself is not changed.

    Parameters keep their names: the float model's `state_dict` loads into the result with `strict=False`, and the only
    missing keys are those that the scheme adds. A layer that gets another width (BinaryDuo, `Config.widths`) starts
    from a part of its float weight and does not load it.

    The result has the plain attributes of the model (copies, where the name is free and they can be pickled and hold no
    tensors and modules), the hooks of its layers, and what its own `train()` holds in the other mode or freezes; call
    `train()` of the result itself for that. It has no methods of the model (`Model.method(result)` calls one) and no
    hooks of blocks. Hooks that change values keep a layer or block float, and are refused on other layers of torch.

    Args:
        model: a module that `torch.fx` can trace; a submodule that it cannot is kept as a float leaf, with a warning.
        scheme: one of `bnnfx.schemes()`.
        example_inputs: arguments of `model.forward`, shaped as in use; optional, lets shapes be checked. Arguments that
            are left out, or None at the end, have their defaults in the graph, which does not take them. Without
            example inputs, every hook is taken to change values.
        config: which layers stay float, and options of the scheme.
        check: compare the traced network with `model` on the example inputs, in evaluation and in training. A submodule
            that is traced wrongly is kept as a float leaf then. And count the bits of activations there, for `explain`,
            with a warning where all that a layer reads are the same.

    Returns:
        A graph module in stage TRAINABLE, in the training mode and on the device of `model`.

    Raises:
        ValueError: unknown scheme or option, or a configuration that names no layer or contradicts itself.
        ConversionError: the model cannot be traced or copied, is no plain module, or was converted before; or nothing
            in it can be binarized.
        ExampleInputError: the example inputs do not fit the model.

    >>> model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3)))
    >>> type(convert(model, "bireal").get_submodule("1")).__name__
    'BinaryConv2d'
    """
    require_flag("check", check)
    chosen = get_scheme(scheme)
    config = Config() if config is None else config
    if not isinstance(config, Config):
        raise ValueError(f"config is a bnnfx.Config, or None for the usual one; got {config!r}.")
    options = chosen.resolve(config.options)
    _refuse_converted(model)
    passes = pipelines.with_extensions(pipelines.CONVERT)
    canonicalizing = [kind for kind in passes if kind.requires is Stage.TRACED]
    whole: dict[str, str] = {}  # what is traced wrongly, as the values tell
    functions = Functions()
    inputs = tensors_if_given(example_inputs)
    require_module(model)
    valued = inputs if inputs is not None and _can_compare(model, inputs) else None
    changing = changing_hooks(model, valued)
    require_looking(model, changing, valued is not None)
    looking = frozenset(hooked(model)) - changing
    checked = valued if check else None
    while True:
        try:
            gm, leaves, modes = trace(model, whole, inputs, changing, functions)
        except ConversionError as error:
            _refuse_names(model, error)
            raise
        ranges: dict[fx.Node, tuple[float, float]] = {}
        shapes = {} if inputs is None else infer_shapes(gm, inputs, ranges=ranges)
        layers = weight_layers(model, gm)
        trace_report = PassReport("Trace", refused=leaves, role=Role.DECIDES)
        record = Record(Stage.TRACED, chosen.name, options, [trace_report], layers=layers)
        context = ConvertContext(chosen, config, options, shapes, ranges, leaves, layers, looking=looking)
        run_passes(gm, canonicalizing, context, record)
        if checked is None:
            break
        difference = first_difference(model, gm, checked, modes)
        if difference is None:
            break
        if functions.keep_whole([difference.path]):
            continue
        if not difference.path or difference.path in whole:
            raise ConversionError(
                f"'{difference.path or type(model).__name__}' {difference}, and keeping a submodule whole does not "
                "mend that. Move the part of forward that tracing does not see into a submodule of its own, or pass "
                "check=False if the difference is wanted."
            )
        whole[difference.path] = f"it {difference}"
    run_passes(gm, [kind for kind in passes if kind not in canonicalizing], context, record)
    attach(gm, record)
    gm.keep_attributes(plain_attributes(model))
    for leaf in leaves:
        warnings.warn(f"'{leaf.subject}' is {leaf.reason}", stacklevel=2)
    lost = not_kept(model, gm)
    if lost:
        warnings.warn(lost, stacklevel=2)
    if checked is not None and _vary(checked):
        for dead in note_constant_bits(gm, record, count_bits(gm, checked)):
            warnings.warn(f"'{dead.subject}': {dead.reason}. To change it: {dead.remedy}.", stacklevel=2)
    return gm


def _vary(inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether the inputs are more than a shape: of zeros, all bits are the same."""
    return any(bool((x != x.flatten()[0]).any()) for x in inputs if x.numel())


def _refuse_converted(model: object) -> None:
    record = record_of(model) if isinstance(model, fx.GraphModule) else None
    if record is not None:
        then = "train it, then lower it" if record.stage is Stage.TRAINABLE else "export it"
        raise ConversionError(
            f"This graph was converted before, with scheme {record.scheme!r}, and is in stage {record.stage.value}: "
            f"{then}. To convert in another way, pass the float model."
        )


def _can_compare(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether there are values to compare: there is a sample, and nothing is on the device meta."""
    valueless = any(x.is_meta for x in (*inputs, *model.parameters(), *model.buffers()))
    return not valueless and all(x.numel() for x in inputs)


def _refuse_names(model: nn.Module, error: ConversionError) -> None:
    """Raise if names explain why a model cannot be traced; torch.fx writes them into the code of the graph."""
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())]
    parts = {part: name for name in names for part in name.split(".")}
    bad = [name for part, name in parts.items() if keyword.iskeyword(part) or set(part) & set('"\n\r')]
    if bad:
        raise ConversionError(
            f"The name {bad[0]!r} has a part that torch.fx cannot write into a graph, a keyword of Python or one with "
            "a quotation mark or a line break; rename it."
        ) from error


def split(gm: fx.GraphModule, example_inputs: tuple[Any, ...] | None = None, *, check: bool = True) -> fx.GraphModule:
    """Make two binary activations of each ternary one, as BinaryDuo's second stage does; `gm` is not changed.

    The result computes what `gm` computes, up to rounding, in evaluation and in a first training step (but for the
    masks of a dropout); gradients differ. Behind an activation each layer reads twice the channels with the weight
    `[W/2, W/2]`; in front of it a batch norm of twice the channels, with beta shifted by -1/4 and +1/4, reads two
    copies of a map that is computed once; a residual stream s is carried as `[s - 1/4, s + 1/4]`. Names stay. Go on
    training with a new optimizer, or with `split_optimizer_state`.

    Args:
        gm: a graph module in stage TRAINABLE with ternary activations.
        example_inputs: arguments of its forward, for the comparison; without them there is none.
        check: compare the result with `gm`, in evaluation, on the first two samples of the example inputs, as
            `bnnfx.lower` does.

    Returns:
        A graph module in stage TRAINABLE, in the training mode and on the device of `gm`.

    Raises:
        StageError: `gm` is no trainable graph of `convert`.
        ExampleInputError: the example inputs do not fit.
        ConversionError: it has no ternary activation, or one that cannot be split, with the reason; or the result
            computes something else than `gm`.

    Source: BinaryDuo (Kim et al. 2020, arXiv 2002.06517), decoupling; the authors' code.
    """
    require_flag("check", check)
    record = require_stage(gm, Stage.TRAINABLE, "split").continued()
    if not _is_ternary(gm):
        found = (
            "was split before" if any(said.name == SplitActivations.__name__ for said in record.reports) else "has none"
        )
        raise ConversionError(
            f"split makes two binary activations of each ternary one, and this graph {found}; "
            "bnnfx.convert(model, scheme='binaryduo') returns one with ternary activations."
        )
    result = copy_of(gm)
    expected = None
    given = () if example_inputs is None else as_tensors(example_inputs, scalars=True)
    if example_inputs is not None:
        require_arguments(gm, given)
    if check and given and _can_compare(gm, given):
        inputs = tuple(x.cpu() for x in given)
        expected = run_trainable(_for_inference(gm), inputs)
    run_passes(result, pipelines.with_extensions(pipelines.SPLIT), None, record)
    attach(result, record)
    if expected is not None:
        check_rewritten(expected, _for_inference(result), record, inputs, "split", "ternary")
    return result


def _for_inference(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy in evaluation, in float32, on the CPU."""
    return copy_of(gm).cpu().float().eval()


def split_if_ternary(gm: fx.GraphModule, example_inputs: tuple[Any, ...] | None = None) -> fx.GraphModule:
    """The graph that can be lowered: `gm` itself, or what `split` makes of it where it has ternary activations.

    Raises:
        ExampleInputError: the example inputs do not fit.
        ConversionError: it has one that cannot be split, with the reason.
    """
    return split(gm, example_inputs) if _is_ternary(gm) else gm


def _is_ternary(gm: fx.GraphModule) -> bool:
    """Whether some activation is half the sum of two binary ones, which `split` makes of it."""
    return any(isinstance(module, ActivationBinarizer) and module.split() is not None for module in gm.modules())


def lower(gm: fx.GraphModule, example_inputs: tuple[Any, ...], *, check: bool = True) -> fx.GraphModule:
    """Fold and bit-pack a trainable graph for inference; `gm` is not changed.

    The result computes what `gm.eval()` computes. Where only bits go from one binary layer to the next, they are equal
    for every input, but for a batch norm whose gamma / sigma is beyond float32 (3.4e38), and, in an exported file, for
    NaN in front of a float max-pool, which ONNX Runtime drops. Where a float stream goes on, a folded batch norm can
    turn a bit whose value was within rounding of its threshold, and `bnnfx.verify` counts those.

    Args:
        gm: a graph module in stage TRAINABLE, on any device.
        example_inputs: arguments of its forward; the batch size stays free, other sizes are fixed. An input whose first
            axis is not as long as that of the first input, or that has no axis, has no batch; give a batch of two or
            more where some input has a first axis of 1.
        check: compare the result with `gm` on the first two samples of the example inputs, as `bnnfx.verify` does, and
            return nothing that differs by more than rounding. On the device meta they have no values to compare. A
            network that draws random numbers in evaluation, so that it differs from itself, is not held to it.

    Returns:
        A graph module in stage PACKED, in float32 on the CPU, for inference only; without hooks that only look.

    Raises:
        StageError: `gm` is no trainable graph of `convert`, or has ternary activations, which `bnnfx.split` replaces.
        ExampleInputError: the example inputs do not fit.
        ConversionError: a float layer reads an activation whose threshold is computed from the activations; or a
            scheme's weights are not -1 and 1, or its activations not what their threshold says; or a weight has no
            values; or a hook changes values; or something stays in training after `eval()`; or it cannot be copied; or
            the result computes something else than `gm`.

    >>> import torch
    >>> model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3)))
    >>> packed = lower(convert(model, "xnor"), (torch.zeros(1, 8, 9, 9),))
    >>> packed(torch.zeros(5, 8, 9, 9)).shape
    torch.Size([5, 8, 3, 3])
    """
    require_flag("check", check)
    record = require_stage(gm, Stage.TRAINABLE, "lower").continued()
    require_two_levels(gm, "lower")
    valueless = [name for name, value in (*gm.named_parameters(), *gm.named_buffers()) if value.is_meta]
    if valueless:
        raise ConversionError(
            f"'{valueless[0]}' has no values, which lower folds and packs: it is on the device meta. Load weights with "
            "load_state_dict(state, assign=True)."
        )
    packed = _for_inference(gm).requires_grad_(False)
    # of examples without values the shapes are enough
    given = as_tensors(example_inputs, scalars=True)
    inputs = tuple(torch.zeros_like(x, device="cpu") if x.is_meta else x.cpu() for x in given)
    settle_hooks(packed, gm, inputs)
    require_evaluation(packed)
    record.inputs = tuple((x.shape, x.dtype) for x in inputs)
    expected = None
    if check and _can_compare(gm, given):
        expected = run_trainable(packed, inputs)
    shapes = infer_shapes(packed, inputs) if expected is None or not is_whole(inputs) else expected.shapes
    context = LowerContext(inputs, shapes, record.packed, record.same_bits)
    run_passes(packed, pipelines.with_extensions(pipelines.LOWER), context, record)
    attach(packed, record)
    if expected is not None:
        check_rewritten(expected, packed, record, inputs, "packed", "trainable")
    return packed


def export(
    gm: fx.GraphModule,
    path: str | Path,
    target: str = "bnnfx",
    *,
    example_inputs: tuple[Any, ...] | None = None,
    check: bool = True,
    **options: Any,
) -> Path:
    """Write a graph as one file.

    Args:
        gm: a graph in stage PACKED, or in stage TRAINABLE, which is lowered first.
        path: the file to write; it appears whole or not at all. What is no regular file is written to.
        target: what to write, one of `bnnfx.targets()`.
        example_inputs: arguments of forward, needed to lower a trainable graph.
        check: run what is to be written, where it is ONNX of ours, on random inputs of the shapes that the graph was
            lowered for, with the kernel library and without, and write nothing that differs from the packed graph by
            more than rounding; and check what is lowered first. As for `lower`, a network that draws random numbers is
            not held to it.
        **options: those of the target.

    Returns:
        The path written.

    Raises:
        ValueError: unknown target, or an option that the target does not take.
        StageError: `gm` is neither trainable nor packed.
        ExportError: `path` cannot be written, the target cannot hold the graph, or what it made of it computes
            something else or does not run.
        ConversionError: see `lower`.
    """
    TARGETS.get(target)
    path = require_folder(path)
    return write_whole(path, content_of(gm, target, example_inputs=example_inputs, check=check, **options))


def content_of(
    gm: fx.GraphModule,
    target: str = "bnnfx",
    *,
    example_inputs: tuple[Any, ...] | None = None,
    check: bool = True,
    **options: Any,
) -> bytes:
    """What `export` writes; arguments and errors are those of `export`."""
    require_flag("check", check)
    chosen = TARGETS.get(target)
    record = record_of(gm) if isinstance(gm, fx.GraphModule) else None
    if record is not None and record.stage is Stage.TRAINABLE:
        if example_inputs is None:
            raise ExportError("A trainable graph is lowered first, which needs example_inputs=(x,); none were given.")
        gm = lower(gm, example_inputs, check=check)
    record = require_stage(gm, Stage.PACKED, "export")
    rendered = chosen.content(gm, options)
    content = rendered if isinstance(rendered, bytes) else rendered.encode()
    if check and chosen.onnx:
        check_file(gm, record, content)
    return content


def export_onnx(
    gm: fx.GraphModule,
    path: str | Path,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    dialect: str = "bnnfx",
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    check: bool = True,
) -> Path:
    """Write a graph as one ONNX file with a free batch size: `export` for the targets that are ONNX.

    Args:
        gm: a graph in stage PACKED, or in stage TRAINABLE, which is lowered first.
        path: the file to write; it appears whole or not at all.
        example_inputs: arguments of forward, needed to lower a trainable graph.
        dialect: `"bnnfx"` (nodes of domain `ai.bnnfx`, each with a body of standard operators, so that the file runs
            in any ONNX Runtime and at full speed where the kernel library is registered), `"standard"` (standard
            operators only), or a registered one.
        opset: version of the standard operator set, from 18 to the newest that is installed; 18 if not given.
        input_names: names of the inputs in the file, in the order of forward; those of its arguments if not given.
        output_names: names of the outputs, in order; if not given, the keys and fields of what forward returns, where
            it has any. None among them is left out.
        check: run the file before it is written, see `export`.

    Returns:
        The path written.

    Raises:
        ValueError: unknown dialect; an opset that is too old or too new; names that are too many, too few, or not
            different.
        StageError: `gm` is neither trainable nor packed.
        ExportError: `path` cannot be written, some node cannot be exported, or the file computes something else than
            the packed graph or does not run.
        ConversionError: see `lower`.
    """
    require_dialect(dialect)
    names = {"opset": opset, "input_names": input_names, "output_names": output_names}
    options = {name: value for name, value in names.items() if value is not None}
    return export(gm, path, dialect, example_inputs=example_inputs, check=check, **options)
