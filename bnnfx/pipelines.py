"""The order of all passes, stage by stage; written here and nowhere else.

Another package adds a pass through the entry-point group `bnnfx.passes`: a `Pass` class whose attribute `after` is the
pass that it follows, one of these tuples or another package's. Those that follow the same pass stand in the order of
the names of their packages, and within a package as its entry points are listed; each has its own followers right
behind it.
"""

import inspect
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

from bnnfx.graph.pass_runner import Pass
from bnnfx.passes.convert.add_shortcut_per_convolution import AddShortcutPerConvolution
from bnnfx.passes.convert.binarize_layers import BinarizeLayers
from bnnfx.passes.convert.call_layers_by_module import CallLayersByModule
from bnnfx.passes.convert.canonicalize_calls import CanonicalizeCalls
from bnnfx.passes.convert.couple_widths import CoupleWidths
from bnnfx.passes.convert.functionalize_inplace import FunctionalizeInplace
from bnnfx.passes.convert.insert_batchnorm import InsertBatchNorm
from bnnfx.passes.convert.normalize_gated import NormalizeGated
from bnnfx.passes.convert.pad_in_front import PadInFront
from bnnfx.passes.convert.read_subclasses_as_layers import ReadSubclassesAsLayers
from bnnfx.passes.convert.replace_relu import ReplaceRelu
from bnnfx.passes.convert.select_layers import SelectLayers
from bnnfx.passes.convert.skip_activations import SkipActivations
from bnnfx.passes.lower.compare_for_float_layers import CompareForFloatLayers
from bnnfx.passes.lower.drop_inference_identities import DropInferenceIdentities
from bnnfx.passes.lower.fold_batchnorm_to_affine import FoldBatchNormToAffine
from bnnfx.passes.lower.fold_constants import FoldConstants
from bnnfx.passes.lower.fold_epilogue_to_threshold import FoldEpilogueToThreshold
from bnnfx.passes.lower.freeze_batchnorm import FreezeBatchNorm
from bnnfx.passes.lower.fuse_epilogue_into_convolution import FuseEpilogueIntoConvolution
from bnnfx.passes.lower.fuse_replication_into_convolution import FuseReplicationIntoConvolution
from bnnfx.passes.lower.keep_channels_last import KeepChannelsLast
from bnnfx.passes.lower.move_maxpool_behind_pack import MoveMaxPoolBehindPack
from bnnfx.passes.lower.pack_layers import PackLayers
from bnnfx.passes.lower.read_sequences_as_maps import ReadSequencesAsMaps
from bnnfx.passes.lower.settle_mode import SettleMode
from bnnfx.passes.lower.settle_sizes import SettleSizes
from bnnfx.passes.split.move_shift_upstream import MoveShiftUpstream
from bnnfx.passes.split.replicate_before_batchnorm import ReplicateBeforeBatchNorm
from bnnfx.passes.split.split_activations import SplitActivations
from bnnfx.registry import entry_point, read_entry_points

AnyPass = type[Pass[Any, Any, Any]]

_GROUP = "bnnfx.passes"

CONVERT: tuple[AnyPass, ...] = (
    # TRACED -> CANONICAL
    FunctionalizeInplace,
    CallLayersByModule,
    ReadSubclassesAsLayers,
    CanonicalizeCalls,
    # CANONICAL: decide once, then give the network the structure that the scheme needs
    SelectLayers,
    SkipActivations,
    InsertBatchNorm,
    NormalizeGated,
    AddShortcutPerConvolution,  # needs the batch norms: a shortcut joins behind them
    ReplaceRelu,  # needs the shortcuts: a ReLU behind an add closes a block
    CoupleWidths,  # needs the shortcuts: they tie the widths at their ends together
    PadInFront,  # behind what looks for chains of layers
    # CANONICAL -> TRAINABLE
    BinarizeLayers,
)

SPLIT: tuple[AnyPass, ...] = (
    # TRAINABLE: each step keeps what the network computes
    SplitActivations,
    MoveShiftUpstream,
    ReplicateBeforeBatchNorm,  # needs the streams: it widens what adds to one
)

LOWER: tuple[AnyPass, ...] = (
    # TRAINABLE
    SettleMode,
    SettleSizes,
    DropInferenceIdentities,
    FoldConstants,  # what batch norms written by hand compute of their statistics
    FreezeBatchNorm,
    CompareForFloatLayers,  # needs the dropouts gone: then the readers of a binarizer are layers
    # TRAINABLE -> PACKED
    PackLayers,
    # PACKED: all passes behind this one know maps only
    ReadSequencesAsMaps,
    # two copies of a map become one convolution first, which is what the passes behind look for
    FuseReplicationIntoConvolution,
    # the bits of a chain first, with the float expression still as it was trained; then what stays float
    MoveMaxPoolBehindPack,
    FoldEpilogueToThreshold,
    FoldBatchNormToAffine,
    FuseEpilogueIntoConvolution,  # needs what the passes before it left float
    KeepChannelsLast,
)


def with_extensions(passes: tuple[AnyPass, ...]) -> tuple[AnyPass, ...]:
    """The passes, and behind each those of other packages that follow it; an entry point that fails is left out.

    Raises:
        ValueError: a pass of another package follows none of ours, be it through others, or is for another stage.
    """
    extensions: dict[AnyPass, EntryPoint] = {}

    def take(entry: EntryPoint, found: object) -> None:
        if not (isinstance(found, type) and issubclass(found, Pass)):
            raise TypeError(f"it must be a subclass of bnnfx.graph.pass_runner.Pass, and is {found!r}.")
        if inspect.isabstract(found):
            raise TypeError(f"{found.__name__} does not define {', '.join(sorted(found.__abstractmethods__))}.")
        extensions.setdefault(found, entry)

    read_entry_points(_GROUP, take)
    placed = {kind for ours in (*CONVERT, *SPLIT, *LOWER) for kind in _with_followers(ours, extensions)}
    for extension, entry in extensions.items():
        if extension not in placed:
            raise ValueError(_misplaced(extension, entry, extensions))
        assert extension.after is not None
        stage = extension.after.ensures
        if not getattr(extension, "requires", None) is getattr(extension, "ensures", None) is stage:
            raise ValueError(
                f"{entry_point(_GROUP, entry)} follows {extension.after.__name__}, behind which a graph is in stage "
                f"{stage.value}. Set the attributes `requires` and `ensures` of {extension.__name__} to {stage}."
            )
    return tuple(kind for ours in passes for kind in _with_followers(ours, extensions))


def _with_followers(kind: AnyPass, extensions: dict[AnyPass, EntryPoint]) -> Iterator[AnyPass]:
    yield kind
    for extension in extensions:
        if extension.after is kind:
            yield from _with_followers(extension, extensions)


def _misplaced(extension: AnyPass, entry: EntryPoint, extensions: dict[AnyPass, EntryPoint]) -> str:
    """Why a pass of another package has no place: it follows nothing, or a pass that has none, or itself."""
    chain = [extension]
    while chain[-1].after in extensions and chain[-1].after not in chain:
        chain.append(chain[-1].after)
    last, names = chain[-1].after, " after ".join(kind.__name__ for kind in chain)
    if last in chain:
        reason = f"the passes follow each other in a circle: {names} after {last.__name__}"
    elif last is None:
        reason = f"{names} follows no pass"
    else:
        reason = f"{names} follows {last!r}, which is in no pipeline"
    return (
        f"{entry_point(_GROUP, entry)} has no place: {reason}. Set the attribute `after` of {chain[-1].__name__} to "
        "one of the passes in bnnfx.pipelines, or to a pass of another package that follows one."
    )
