"""Watch a network on its way: the graph before and after every pass, pictures of every stage, and the report.

    python examples/inspect_graph.py --output examples/inspect_graph

Prints what each pass did to the code of the graph, and writes `float.svg`, `trainable.svg`, `packed.svg` and
`report.html` into the folder. `examples/inspect_graph.md` walks through it.
"""

import argparse
import difflib
import re
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import analysis
from bnnfx.graph.pass_runner import watch_passes
from bnnfx.graph.record import PassReport


class Block(nn.Module):
    """Two convolutions and a shortcut, which has a convolution of its own where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, (3, 1), 1, (1, 0), bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x)
        return self.relu(y)


class Network(nn.Module):
    """Odd on purpose: maps that are not square, channels that fill no word, in-place functions, a chain at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 5, 2, 2, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.block1, self.block2 = Block(24, 24, 1), Block(24, 40, 2)
        self.head = nn.Sequential(nn.Conv2d(40, 72, 3, bias=False), nn.BatchNorm2d(72), nn.ReLU(), nn.MaxPool2d(2))
        self.fc1, self.fc2 = nn.Linear(72 * 3 * 5, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.block2(self.block1(self.stem(x))))
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class Diary:
    """Prints how each pass changed the code of the graph."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._code = readable(gm)

    def __call__(self, report: PassReport, gm: fx.GraphModule) -> None:
        """After a pass."""
        counts = f"{len(report.applied)} applied, {len(report.refused)} refused, {len(report.notes)} noted"
        print(f"\n{report.name}: {counts}{'' if report.changed else '; nothing changed'}")
        code = readable(gm)
        for line in list(difflib.unified_diff(self._code, code, n=0, lineterm=""))[2:]:
            if not line.startswith("@@"):
                print(f"  {line}")
        self._code = code


def readable(gm: fx.GraphModule) -> list[str]:
    """The lines of the graph's forward, without what frees memory or only fetches a constant."""
    lines = [re.sub(r";  (\w+ = )+None$", "", line).strip() for line in gm.code.strip().splitlines()]
    return [line for line in lines if line.endswith(")") or not re.match(r"\w+ = (self|getattr)\b", line)]


def train(bnn: fx.GraphModule, x: Tensor, y: Tensor) -> analysis.FlipHistory:
    """A few steps on one batch, with a log of flips."""
    flips = analysis.FlipRate(bnn)
    optimizer = torch.optim.Adam(bnn.parameters(), 1e-2)
    for _ in bnnfx.Schedule(bnn, epochs=3):
        for _ in range(4):
            loss = F.cross_entropy(bnn(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            flips.update()
    return flips.history


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="rbnn", choices=bnnfx.schemes())
    parser.add_argument("--output", type=Path, default=Path("inspect_graph"), help="a folder (default %(default)s)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    model = Network()
    x, y = torch.randn(8, 3, 29, 45), torch.randint(0, 5, (8,))
    with watch_passes(Diary(fx.symbolic_trace(model))):
        bnn = bnnfx.convert(model, arguments.scheme, example_inputs=(x,))
    flips = train(bnn, x, y)
    bnn.eval()
    if arguments.scheme == "binaryduo":  # which is trained with ternary activations first
        with watch_passes(Diary(bnn)):
            bnn = bnnfx.split(bnn)
    with watch_passes(Diary(bnn)):
        packed = bnnfx.lower(bnn, (x[:1],))
    print(f"\n{bnnfx.verify(bnn, packed, (x,))}")

    for name, graph in (("float", model), ("trainable", bnn), ("packed", packed)):
        bnnfx.draw(graph, arguments.output / f"{name}.svg", example_inputs=(x,))
    path = arguments.output / "report.html"
    print(f"Wrote {bnnfx.report([model, bnn, packed], path, example_inputs=(x,), flips=flips)} and three pictures.")


if __name__ == "__main__":
    main()
