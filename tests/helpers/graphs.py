"""Graphs as text, and passes run one at a time: what the golden tests of the passes compare."""

from dataclasses import dataclass
from textwrap import dedent

from torch import fx

import bnnfx
from bnnfx.config import Config
from bnnfx.frontend.trace import trace, weight_layers
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.pass_runner import run_passes
from bnnfx.graph.record import PassReport, Record
from bnnfx.graph.shapes import infer_shapes
from bnnfx.graph.stage import Stage
from bnnfx.nn import ActivationBinarizer
from bnnfx.pipelines import CONVERT
from bnnfx.schemes import get_scheme


def text(gm: fx.GraphModule) -> str:
    """One line per node: `name = Kind(arguments)`, with the module's path where the name does not say it."""
    lines = []
    for node in gm.graph.nodes:
        arguments = ", ".join([*map(str, node.args), *(f"{key}={value}" for key, value in node.kwargs.items())])
        if node.op == "placeholder":
            lines.append(f"{node.name} = input")
        elif node.op == "output":
            lines.append(f"return {arguments}")
        elif node.op == "call_module":
            path = str(node.target)
            where = "" if path.replace(".", "_") == node.name else f" {path}"
            lines.append(f"{node.name} = {type(gm.get_submodule(path)).__name__}{where}({arguments})")
        elif node.op == "call_method":
            lines.append(f"{node.name} = .{node.target}({arguments})")
        else:
            lines.append(f"{node.name} = {getattr(node.target, '__name__', node.target)}({arguments})")
    return "\n".join(lines)


def lines(gm: fx.GraphModule, *kinds: str) -> list[str]:
    """The lines of `text` that call one of these kinds; at least one must."""
    found = [line for line in text(gm).splitlines() if any(f"= {kind}" in line for kind in kinds)]
    assert found, f"no line calls {kinds}:\n{text(gm)}"
    return found


def golden(block: str) -> str:
    """An indented block of a test as `text` writes it."""
    return dedent(block).strip()


@dataclass
class Ran:
    """What `run_pass` returns: the text before and after, and everything to ask more of."""

    before: str
    after: str
    report: PassReport
    gm: fx.GraphModule
    context: ConvertContext

    @property
    def refused(self) -> dict[str, str]:
        """Reasons by subject."""
        return {remark.subject: remark.reason for remark in self.report.refused}

    @property
    def remedies(self) -> dict[str, str]:
        """What would change that, by subject."""
        return {remark.subject: remark.remedy for remark in self.report.refused}


def full_width(scheme: str) -> Config:
    """The configuration in which a scheme changes no layer's width."""
    return Config(options={"width_factor": 1.0} if "width_factor" in get_scheme(scheme).network_options else {})


def lowerable(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph as `lower` takes it: one with ternary activations is split into two binary ones first."""
    activations = [m for m in gm.modules() if isinstance(m, ActivationBinarizer)]
    assert activations
    return bnnfx.split(gm) if any(len(m.levels) > 2 for m in activations) else gm


def run_pass(kind, model, scheme="xnor", config=None, inputs=None) -> Ran:
    """Run the passes of `convert` in front of `kind`, then `kind` alone."""
    chosen, config = get_scheme(scheme), config or Config()
    gm, leaves, _ = trace(model)
    ranges = {}
    shapes = {} if inputs is None else infer_shapes(gm, inputs, ranges=ranges)
    options = chosen.resolve(config.options)
    record = Record(Stage.TRACED, chosen.name, options)
    context = ConvertContext(chosen, config, options, shapes, ranges, leaves, weight_layers(model))
    run_passes(gm, CONVERT[: CONVERT.index(kind)], context, record)
    before = text(gm)
    run_passes(gm, (kind,), context, record)
    return Ran(before, text(gm), record.reports[-1], gm, context)
