"""Networks on sequences `[N, C, L]`, as they are written for sound."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.models import Model


class M5(Model):
    """A strided stem, convolutions with batch norm, ReLU and max-pooling, and a classifier on the mean.

    As in "Very deep convolutional neural networks for raw waveforms" (arXiv 1610.00087), with few channels.
    """

    shapes = ((2, 1, 400),)

    def __init__(self, width: int = 13) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(1, width, 20, stride=4), nn.BatchNorm1d(width)
        self.conv2, self.bn2 = nn.Conv1d(width, width, 3), nn.BatchNorm1d(width)
        self.conv3, self.bn3 = nn.Conv1d(width, 2 * width, 3, bias=False), nn.BatchNorm1d(2 * width)
        self.conv4, self.bn4 = nn.Conv1d(2 * width, 2 * width, 3), nn.BatchNorm1d(2 * width)
        self.pool, self.fc1 = nn.MaxPool1d(2), nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.pool(F.relu(self.bn2(self.conv2(x))))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.avg_pool1d(F.relu(self.bn4(self.conv4(x))), 2)
        x = F.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)
        return F.log_softmax(self.fc1(x), dim=2)


class Chomp(nn.Module):
    """Drops what a padding on both sides has added on the right."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class Temporal(nn.Module):
    """Two causal convolutions, one padded by hand and one chomped, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, dilation: int, groups: int = 1) -> None:
        super().__init__()
        self.reach = 2 * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, 3, dilation=dilation, groups=groups)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=self.reach, dilation=dilation)
        self.norm1, self.norm2, self.chomp = nn.BatchNorm1d(outputs), nn.BatchNorm1d(outputs), Chomp(self.reach)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(0.1)
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.relu(self.norm1(self.conv1(F.pad(x, (self.reach, 0))))))
        y = self.dropout(self.relu(self.norm2(self.chomp(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class TCN(Model):
    """A temporal convolutional network, which gives classes at every step."""

    shapes = ((2, 3, 31),)

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, width, 1)
        self.blocks = nn.Sequential(
            Temporal(width, width, 1), Temporal(width, 2 * width, 2, groups=2), Temporal(2 * width, 2 * width, 4)
        )
        self.head = nn.Conv1d(2 * width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Strided(Model):
    """Residual blocks with strides, even kernels, padding, and linear layers on the flattened sequence."""

    shapes = ((3, 2, 37),)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 9, 5, padding=2), nn.BatchNorm1d(9), nn.Hardtanh())
        self.conv1, self.bn1 = nn.Conv1d(9, 9, 3, padding=1, bias=False), nn.BatchNorm1d(9)
        self.conv2, self.bn2 = nn.Conv1d(9, 9, 5, padding="same", groups=3), nn.BatchNorm1d(9)
        self.down, self.act = nn.Conv1d(9, 70, 4, stride=3, padding=2, dilation=2), nn.Hardtanh()
        self.hidden, self.head = nn.Linear(70 * 6, 17), nn.Linear(17, 3)
        self.pool = nn.MaxPool1d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(self.bn1(self.conv1(x)) + x)
        x = self.act(self.bn2(self.conv2(x)) + x)
        x = self.pool(self.down(x))
        return self.head(self.hidden(torch.flatten(x, 1)))
