"""AlexNet as XNOR-Net and BinaryDuo define it: no groups, no biases, and a batch norm beside every binary layer."""

import torch
from torch import Tensor, nn

XNOR_WIDTHS = (96, 256, 384, 384, 256, 4096, 4096)
"""Of the five convolutions and two linear layers, as in XNOR-Net's public code (alexnetxnor.lua)."""

COUPLED_WIDTHS = (88, 192, 256, 256, 192, 2400, 4096)
"""The same while BinaryDuo trains with ternary activations: picked by hand, 0.59 to 0.92 of the above."""

KERNELS = (11, 5, 3, 3, 3)
POOLED = (0, 1, 4)  # the convolutions in front of a max-pool


class XnorAlexNet(nn.Module):
    """Batch norm in front of each binary layer, pooling behind it ("B-A-C-P", XNOR-Net, table 3b); 224x224 images."""

    def __init__(self, widths: tuple[int, ...] = XNOR_WIDTHS, classes: int = 1000) -> None:
        super().__init__()
        first, *convolutions = widths[:5]
        layers: list[nn.Module] = [nn.Conv2d(3, first, KERNELS[0], 4, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2))
        for index, (inputs, outputs) in enumerate(zip(widths, convolutions, strict=False), start=1):
            kernel = KERNELS[index]
            convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
            layers += [nn.BatchNorm2d(inputs), convolution, nn.ReLU()]
            if index in POOLED:
                layers.append(nn.MaxPool2d(3, 2))
        fc6, fc7 = widths[5:]
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(widths[4]))
        self.classifier = nn.Sequential(
            *(nn.Linear(widths[4] * 6 * 6, fc6, bias=False), nn.BatchNorm1d(fc6)),
            *(nn.Dropout(0.1), nn.Linear(fc6, fc7, bias=False), nn.BatchNorm1d(fc7), nn.ReLU()),
            nn.Linear(fc7, classes, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class BinaryDuoAlexNet(nn.Module):
    """Convolution, pool, batch norm, activation (BinaryDuo's code), in the coupled widths; 224x224 images."""

    def __init__(self, widths: tuple[int, ...] = COUPLED_WIDTHS, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip((3, *widths), widths[:5], strict=False)):
            kernel = KERNELS[index]
            stride, padding = (4, 2) if index == 0 else (1, kernel // 2)
            layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False))
            if index in POOLED:
                layers.append(nn.MaxPool2d(3, 2))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        fc6, fc7 = widths[5:]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            *(nn.Linear(widths[4] * 6 * 6, fc6, bias=False), nn.BatchNorm1d(fc6), nn.ReLU()),
            *(nn.Dropout(0.1), nn.Linear(fc6, fc7, bias=False), nn.BatchNorm1d(fc7), nn.ReLU()),
            *(nn.Dropout(0.1), nn.Linear(fc7, classes, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))
