"""VGG-7 for 32x32 images as BinaryDuo defines it: its last three layers see maps of one pixel."""

import torch
from torch import Tensor, nn

BASELINE_WIDTHS = (64, 64, 128, 128, 512, 512)
COUPLED_WIDTHS = (45, 45, 90, 90, 336, 512)
"""While BinaryDuo trains with ternary activations; 336 keeps the split network below the baseline's size."""

KERNELS = (3, 3, 3, 3, 4, 1)
POOLED = (1, 2, 3)  # the convolutions in front of a max-pool


class Vgg7(nn.Module):
    """Seven convolutions, no biases; pooling comes before the batch norm (BinaryDuo's code, CIFAR-10)."""

    def __init__(self, widths: tuple[int, ...] = BASELINE_WIDTHS, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False)):
            kernel = KERNELS[index]
            layers.append(nn.Conv2d(inputs, outputs, kernel, padding=1 if kernel == 3 else 0, bias=False))
            if index in POOLED:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Conv2d(widths[-1], classes, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.features(x), 1)
