"""The order of all passes, stage by stage; written here and nowhere else.

Another package adds a pass through the entry-point group `bnnfx.passes`: a `Pass` class whose attribute `after` is the
class that it follows, in one of these tuples or of another package.
"""

import inspect
import warnings
from importlib.metadata import entry_points
from typing import Any

from bnnfx.errors import first_line
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
from bnnfx.passes.lower.fold_constants import FoldConstants
from bnnfx.passes.lower.fold_epilogue_to_threshold import FoldEpilogueToThreshold
from bnnfx.passes.lower.freeze_batchnorm import FreezeBatchNorm
from bnnfx.passes.lower.fuse_epilogue_into_convolution import FuseEpilogueIntoConvolution
from bnnfx.passes.lower.fuse_replication_into_convolution import FuseReplicationIntoConvolution
from bnnfx.passes.lower.keep_channels_last import KeepChannelsLast
from bnnfx.passes.lower.move_maxpool_behind_pack import MoveMaxPoolBehindPack
from bnnfx.passes.lower.pack_layers import PackLayers
from bnnfx.passes.lower.settle_mode import SettleMode
from bnnfx.passes.split.move_shift_upstream import MoveShiftUpstream
from bnnfx.passes.split.replicate_before_batchnorm import ReplicateBeforeBatchNorm
from bnnfx.passes.split.split_activations import SplitActivations

CONVERT: tuple[type[Pass[Any, Any, Any]], ...] = (
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

SPLIT: tuple[type[Pass[Any, Any, Any]], ...] = (
    # TRAINABLE: each step keeps what the network computes
    SplitActivations,
    MoveShiftUpstream,
    ReplicateBeforeBatchNorm,  # needs the streams: it widens what adds to one
)

LOWER: tuple[type[Pass[Any, Any, Any]], ...] = (
    # TRAINABLE
    SettleMode,
    DropInferenceIdentities,
    FoldConstants,  # what batch norms written by hand compute of their statistics
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


def with_extensions(passes: tuple[type[Pass[Any, Any, Any]], ...]) -> tuple[type[Pass[Any, Any, Any]], ...]:
    """The passes, and behind each those of other packages that follow it, in the order of their entry points.

    An entry point that cannot be taken is left out, with a warning that names it.
    """
    waiting = []
    for entry in entry_points(group="bnnfx.passes"):
        try:
            extension = entry.load()
            obstacle = _obstacle(extension)
        except Exception as error:  # whatever the other package's module does when it is imported
            extension, obstacle = None, f"it raises {type(error).__name__}: {first_line(error).removesuffix('.')}"
        if obstacle is None:
            waiting.append(extension)
        else:
            warnings.warn(
                f"The entry point {entry.name!r} of group bnnfx.passes ({entry.value}) is left out: {obstacle}. "
                "Repair the package that it comes from, or uninstall it.",
                stacklevel=3,
            )
    result, placed = list(passes), True
    while placed:
        placed = False
        for extension in [extension for extension in waiting if extension.after in result]:
            place = result.index(extension.after) + 1
            while place < len(result) and extension.after in _followed(result[place]):
                place += 1
            result.insert(place, extension)
            waiting.remove(extension)
            placed = True
    return tuple(result)


def _followed(kind: type[Pass[Any, Any, Any]]) -> list[type[Pass[Any, Any, Any]]]:
    """The pass that a pass follows, the one that this one follows ..., up to one of ours."""
    chain = []
    while kind.after is not None and kind.after not in chain:
        kind = kind.after
        chain.append(kind)
    return chain


def _obstacle(extension: object) -> str | None:
    """Why an object has no place among the passes."""
    if not (isinstance(extension, type) and issubclass(extension, Pass)):
        return "it is no subclass of bnnfx.graph.pass_runner.Pass"
    if inspect.isabstract(extension):
        return f"the class lacks {', '.join(sorted(extension.__abstractmethods__))}"
    root = next((kind for kind in _followed(extension) if kind in CONVERT + SPLIT + LOWER), None)
    if root is None:
        return "its attribute `after` leads to none of the passes in bnnfx.pipelines"
    stages = {getattr(extension, "requires", None), getattr(extension, "ensures", None)}
    if stages != {root.ensures}:
        return f"it follows {root.__name__}, so its attributes `requires` and `ensures` must both be {root.ensures}"
    return None
