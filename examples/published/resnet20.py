"""ResNet-20 for 32x32 images as RBNN and IR-Net define it: a shortcut around every convolution, none with weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)
CONVOLUTIONS_PER_STAGE = 6


class Block(nn.Module):
    """Convolution, batch norm, shortcut, activation.

    Where the shape changes, the shortcut takes every second pixel, and zeros fill up its channels ("option A").
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()  # a scheme puts its own here: RBNN and IR-Net a HardTanh
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return self.relu(self.bn(self.conv(x)) + shortcut)


class ResNet20(nn.Module):
    """RBNN (arXiv 2009.13055) and IR-Net, CIFAR-10."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        inputs = WIDTHS[0]
        self.stem = nn.Sequential(nn.Conv2d(3, inputs, 3, 1, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU())
        blocks = []
        for outputs in WIDTHS:
            for _ in range(CONVOLUTIONS_PER_STAGE):
                blocks.append(Block(inputs, outputs, 1 if inputs == outputs else 2))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.bn = nn.BatchNorm1d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(torch.flatten(self.pool(self.blocks(self.stem(x))), 1)))
