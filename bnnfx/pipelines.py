"""The order of all passes, stage by stage; written here and nowhere else.

Another package adds a pass through the entry-point group `bnnfx.passes`: a `Pass` class whose attribute `after` is the
class in one of these tuples that it follows.
"""

from importlib.metadata import entry_points
from typing import Any

from bnnfx.graph.pass_runner import Pass
from bnnfx.passes.convert.add_shortcut_per_convolution import AddShortcutPerConvolution
from bnnfx.passes.convert.binarize_layers import BinarizeLayers
from bnnfx.passes.convert.canonicalize_calls import CanonicalizeCalls
from bnnfx.passes.convert.couple_widths import CoupleWidths
from bnnfx.passes.convert.functionalize_inplace import FunctionalizeInplace
from bnnfx.passes.convert.insert_batchnorm import InsertBatchNorm
from bnnfx.passes.convert.replace_relu import ReplaceRelu
from bnnfx.passes.convert.select_layers import SelectLayers
from bnnfx.passes.lower.compare_for_float_layers import CompareForFloatLayers
from bnnfx.passes.lower.drop_inference_identities import DropInferenceIdentities
from bnnfx.passes.lower.fold_batchnorm_to_affine import FoldBatchNormToAffine
from bnnfx.passes.lower.fold_epilogue_to_threshold import FoldEpilogueToThreshold
from bnnfx.passes.lower.freeze_batchnorm import FreezeBatchNorm
from bnnfx.passes.lower.fuse_epilogue_into_convolution import FuseEpilogueIntoConvolution
from bnnfx.passes.lower.fuse_replication_into_convolution import FuseReplicationIntoConvolution
from bnnfx.passes.lower.keep_channels_last import KeepChannelsLast
from bnnfx.passes.lower.move_maxpool_behind_pack import MoveMaxPoolBehindPack
from bnnfx.passes.lower.pack_layers import PackLayers
from bnnfx.passes.split.move_shift_upstream import MoveShiftUpstream
from bnnfx.passes.split.replicate_before_batchnorm import ReplicateBeforeBatchNorm
from bnnfx.passes.split.split_activations import SplitActivations

CONVERT: tuple[type[Pass[Any, Any]], ...] = (
    # TRACED -> CANONICAL
    FunctionalizeInplace,
    CanonicalizeCalls,
    # CANONICAL: decide once, then give the network the structure that the scheme needs
    SelectLayers,
    InsertBatchNorm,
    AddShortcutPerConvolution,  # needs the batch norms: a shortcut joins behind them
    ReplaceRelu,  # needs the shortcuts: a ReLU behind an add closes a block
    CoupleWidths,  # needs the shortcuts: they tie the widths at their ends together
    # CANONICAL -> TRAINABLE
    BinarizeLayers,
)

SPLIT: tuple[type[Pass[Any, Any]], ...] = (
    # TRAINABLE: each step keeps what the network computes
    SplitActivations,
    MoveShiftUpstream,
    ReplicateBeforeBatchNorm,  # needs the streams: it widens what adds to one
)

LOWER: tuple[type[Pass[Any, Any]], ...] = (
    # TRAINABLE
    DropInferenceIdentities,
    FreezeBatchNorm,
    CompareForFloatLayers,  # needs the dropouts gone: then the readers of a binarizer are layers
    # TRAINABLE -> PACKED
    PackLayers,
    # PACKED: two copies of a map become one convolution first, which is what the passes behind look for
    FuseReplicationIntoConvolution,
    # the bits of a chain first, with the float expression still as it was trained; then what stays float
    MoveMaxPoolBehindPack,
    FoldEpilogueToThreshold,
    FoldBatchNormToAffine,
    FuseEpilogueIntoConvolution,  # needs what the passes before it left float
    KeepChannelsLast,
)


def with_extensions(passes: tuple[type[Pass[Any, Any]], ...]) -> tuple[type[Pass[Any, Any]], ...]:
    """The passes, and behind each those of other packages that follow it.

    Raises:
        ValueError: an entry point is no pass, or follows none of ours.
    """
    result = list(passes)
    for entry in entry_points(group="bnnfx.passes"):
        extension = entry.load()
        if not (
            isinstance(extension, type) and issubclass(extension, Pass) and extension.after in CONVERT + SPLIT + LOWER
        ):
            raise ValueError(
                f"The entry point {entry.name!r} of group bnnfx.passes ({entry.value}) must be a subclass of Pass "
                "whose attribute `after` is one of the passes in bnnfx.pipelines."
            )
        if extension.after in passes:
            result.insert(result.index(extension.after) + 1, extension)
    return tuple(result)
