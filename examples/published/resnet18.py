"""ResNet-18 (and 34) as Bi-Real Net and BinaryDuo define it, for 224x224 images.

In both, a layer is activation, 3x3 convolution, batch norm; a shortcut that changes the shape is average pooling, 1x1
convolution and batch norm; and the first convolution, those of the shortcuts and the last layer stay float.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BIREAL_WIDTHS = (64, 128, 256, 512)
COUPLED_WIDTHS = (64, 90, 180, 360)
"""BinaryDuo's while it trains with ternary activations: 1/sqrt(2) of the above, but for the first stage."""

LAST_WIDTH = 512
"""Of BinaryDuo's last convolution, which is as wide as before."""


class Residual(nn.Module):
    """`layers(x) + shortcut(x)`."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)


class WidenWithZeros(nn.Module):
    """An identity, and zeros in the channels that it does not have."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.more))


def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride != 1:
        return nn.Sequential(
            nn.AvgPool2d(2, stride), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
    return nn.Identity() if inputs == outputs else WidenWithZeros(outputs - inputs)


class BiRealResNet(nn.Module):
    """Bi-Real Net (arXiv 1808.00278): a shortcut around every convolution, and no ReLU.

    Args:
        depths: convolutions per stage: (4, 4, 4, 4) is ResNet-18, (6, 8, 12, 6) is ResNet-34.
        classes: of the classifier.
    """

    def __init__(self, depths: tuple[int, ...] = (4, 4, 4, 4), classes: int = 1000) -> None:
        super().__init__()
        inputs = BIREAL_WIDTHS[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, inputs, 7, 2, 3, bias=False), nn.BatchNorm2d(inputs), nn.MaxPool2d(3, 2, 1)
        )
        blocks = []
        for stage, (outputs, depth) in enumerate(zip(BIREAL_WIDTHS, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                layers = nn.Sequential(*convolution(inputs, outputs, stride))
                blocks.append(Residual(layers, shortcut(inputs, outputs, stride)))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class BinaryDuoResNet18(nn.Module):
    """BinaryDuo (arXiv 2002.06517, and the authors' code), in the coupled widths.

    Args:
        shortcut_per_convolution: the variant "+sc"; otherwise a shortcut spans two convolutions.
        classes: of the classifier.
    """

    def __init__(self, shortcut_per_convolution: bool = False, classes: int = 1000) -> None:
        super().__init__()
        inputs = COUPLED_WIDTHS[0]
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, inputs, 7, 2, 3, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()),
            *(nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(inputs)),
        )
        span = 1 if shortcut_per_convolution else 2
        widths = [width for width in COUPLED_WIDTHS for _ in range(4)]
        widths[-1] = LAST_WIDTH
        blocks = []
        for start in range(0, len(widths), span):
            first, layers = inputs, []
            stride = 2 if start in (4, 8, 12) else 1
            for index in range(start, start + span):
                layers += [nn.ReLU(), *convolution(inputs, widths[index], stride if index == start else 1)]
                inputs = widths[index]
            blocks.append(Residual(nn.Sequential(*layers), shortcut(first, inputs, stride)))
        self.blocks = nn.Sequential(*blocks)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.relu(self.blocks(self.stem(x)))), 1))
