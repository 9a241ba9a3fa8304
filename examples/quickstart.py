"""From a float network to a binary ONNX file on real images: convert, train, lower, export, run.

    python examples/quickstart.py

A small residual network is trained on Fashion-MNIST in float, converted with RBNN, trained again, lowered to packed
bits and exported; with `--scheme binaryduo` it is split in between, and trained once more. The table at the end
compares all four forms on the whole test set.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import torch
from images import load_images
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import bnnfx
from bnnfx.api import split_if_ternary


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def residual_network(width: int = 32) -> nn.Module:
    """A ResNet for 28x28 images: 14x14, 14x14, 7x7 maps."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        ResidualBlock(width, width, 1),
        ResidualBlock(width, 2 * width, 2),
        ResidualBlock(2 * width, 2 * width, 1),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    )


def train(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, learning_rate: float, progress: Progress) -> None:
    """A plain training loop; of a binary network, `bnnfx.Schedule` yields the epochs and anneals with them."""
    binary = isinstance(model, torch.fx.GraphModule)
    images, labels = data
    batch = 128
    steps = len(images) // batch
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * steps)
    task = progress.add_task(f"train {'binary' if binary else 'float'}", total=epochs * steps)
    model.train()
    for _ in bnnfx.Schedule(model, epochs) if binary else range(epochs):
        for chosen in torch.randperm(len(images))[: steps * batch].split(batch):
            x = images[chosen]
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            loss = F.cross_entropy(model(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            progress.advance(task)
    model.eval()


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], images: Tensor, name: str, progress: Progress) -> Tensor:
    """Predicted class per image."""
    parts = images.split(250)
    task = progress.add_task(f"test {name}", total=len(parts))
    predictions = []
    for x in parts:
        predictions.append(torch.as_tensor(model(x)).argmax(1))
        progress.advance(task)
    return torch.cat(predictions)


def saved_bytes(model: nn.Module) -> int:
    """Size of the file that `torch.save` makes of the model's parameters and buffers."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def main() -> None:
    """Run the example and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="rbnn", choices=bnnfx.schemes())
    parser.add_argument("--epochs", type=int, default=4, help="of the binary model (default %(default)s)")
    parser.add_argument("--float-epochs", type=int, default=2, help="of the float model (default %(default)s)")
    parser.add_argument("--limit", type=int, default=None, help="use only so many images of each split")
    parser.add_argument("--output", type=Path, default=Path("quickstart.onnx"))
    arguments = parser.parse_args()
    console = Console()
    start = time.perf_counter()
    torch.manual_seed(0)
    images = load_images()
    console.print(f"Images: {images.name}")
    limit = slice(arguments.limit)
    (x_train, y_train), (x_test, y_test) = ((x[limit], y[limit]) for x, y in (images.train, images.test))

    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        model = residual_network()
        train(model, (x_train, y_train), arguments.float_epochs, 1e-2, progress)
        predictions = {"float": predict(model, x_test, "float", progress)}

        bnn = bnnfx.convert(model, arguments.scheme, example_inputs=(x_test[:2],))
        train(bnn, (x_train, y_train), arguments.epochs, 2e-2, progress)
        split = split_if_ternary(bnn)
        if split is not bnn:  # BinaryDuo's second stage: two binary activations for each ternary one, and fine-tuning
            bnn = split
            train(bnn, (x_train, y_train), arguments.epochs, 2e-3, progress)
        predictions["trained binary"] = predict(bnn, x_test, "binary", progress)

        packed = bnnfx.lower(bnn, (x_test[:2],))
        predictions["packed"] = predict(packed, x_test, "packed", progress)

        bnnfx.export_onnx(packed, arguments.output)
        session = bnnfx.load(arguments.output)
        predictions["onnxruntime"] = predict(session.run, x_test, "onnxruntime", progress)

    sizes = {name: saved_bytes(m) for name, m in (("float", model), ("trained binary", bnn), ("packed", packed))}
    sizes["onnxruntime"] = arguments.output.stat().st_size
    before = {"trained binary": "float", "packed": "trained binary", "onnxruntime": "packed"}
    table = Table("model", "test accuracy", "bytes on disk", "predictions that differ from the row above")
    for name, predicted in predictions.items():
        accuracy = (predicted == y_test).double().mean()
        differing = f"{(predicted != predictions[before[name]]).sum()} of {len(y_test)}" if name in before else ""
        table.add_row(name, f"{accuracy:.2%}", f"{sizes[name]:,}", differing)
    console.print(table)
    console.print(f"{bnnfx.verify(packed, arguments.output, (x_test[:250],))}")
    console.print(f"Wrote {arguments.output} in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
