"""VGG-small for 32x32 images as RBNN and IR-Net define it."""

import torch
from torch import Tensor, nn

WIDTHS = (128, 128, 256, 256, 512, 512)
POOLED = (1, 3, 5)  # the convolutions in front of a max-pool


class VggSmall(nn.Module):
    """Six convolutions and a linear layer; pooling comes before the batch norm (RBNN's code, CIFAR-10)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            if index in POOLED:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]  # a scheme puts its own activation here
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(WIDTHS[-1] * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.features(x), 1))
