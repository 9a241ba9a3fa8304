"""Small models, each with one hazard for a compiler; every one takes tensors of the shapes in its `shapes`."""

import torch
from torch import nn
from torch.nn import functional as F

IMAGE = (2, 3, 8, 8)


class Model(nn.Module):
    """Base: `shapes` are those of the arguments of forward."""

    shapes: tuple[tuple[int, ...], ...] = (IMAGE,)

    def inputs(self, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in self.shapes)


def conv3x3(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options)


class Chain(Model):
    """Float stem and classifier, two binary convolutions and a binary linear layer, batch norm everywhere."""

    def __init__(self, inplace=False):
        super().__init__()
        self.stem, self.bn0 = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = conv3x3(8, 8), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv3x3(8, 16, stride=2), nn.BatchNorm2d(16)
        self.fc1, self.bn3 = nn.Linear(16 * 2 * 2, 16, bias=False), nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, 4)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        x = self.relu(self.bn0(self.stem(x)))
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.pool(self.bn2(self.conv2(x))))
        return self.fc2(self.relu(self.bn3(self.fc1(torch.flatten(x, 1)))))


class NoBatchNorm(Model):
    """Convolutions with bias and ReLU only, as in AlexNet and VGG."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn, plus the shortcut, then ReLU; `downsample` is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class Residual(Model):
    """A stem, one BasicBlock (the second downsamples if asked), a float classifier."""

    def __init__(self, downsample=False):
        super().__init__()
        self.stem = nn.Sequential(conv3x3(3, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.block = BasicBlock(8, 16, stride=2) if downsample else BasicBlock(8, 8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16 if downsample else 8, 4)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.block(self.stem(x))), 1))


class PreActivation(Model):
    """bn-relu-conv-bn-relu-conv, plus the identity; no ReLU behind the add."""

    def __init__(self):
        super().__init__()
        self.stem = conv3x3(3, 8)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), conv3x3(8, 8)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), conv3x3(8, 8)
        self.fc = nn.Linear(8 * 64, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return self.fc(torch.flatten(x + y, 1))


class Bottleneck(Model):
    """1x1, 3x3, 1x1 with a narrow middle: no identity fits around its last convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = conv3x3(4, 4), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 64, 4)

    def forward(self, x):
        x = F.relu(self.bn0(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return self.fc(torch.flatten(F.relu(self.bn3(self.conv3(y)) + x), 1))


class TwoReaders(Model):
    """One value feeds two convolutions and a concatenation, and what they give is an output each."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.left, self.right = conv3x3(8, 8), conv3x3(8, 8)
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        return self.last(torch.cat([self.left(x), x, self.right(x)], 1))


class SharedLayer(Model):
    """One convolution and one ReLU module, each called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv = conv3x3(8, 8)
        self.relu = nn.ReLU()
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.bn(self.stem(x))
        return self.last(self.conv(self.relu(self.conv(self.relu(x)))))


class InplaceReadAgain(Model):
    """An in-place ReLU whose input is read again, before it and after it: the later reader sees what it wrote."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = conv3x3(3, 8), conv3x3(8, 8)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        before = x * 2
        y = self.relu(x)
        return self.last(self.conv(y) + before + x)


class InplaceCalls(Model):
    """In-place functions and methods, each of a value that is read again; a plain ReLU module named like a node."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = conv3x3(3, 8), conv3x3(8, 8)
        self.relu = nn.ReLU()
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        a = self.stem(x)
        b = a + F.relu(a, inplace=True)
        c = self.conv(b)
        d = torch.relu_(c) - c
        e = d.sub(0.1)
        f = e.relu_() + e
        g = f * 1.5
        h = g.add_(a) * g
        kept = self.relu(h) - h
        return self.last(kept)


class Functional(Model):
    """Every alias that has a canonical spelling."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = conv3x3(3, 8), conv3x3(8, 8)
        self.flatten = nn.Flatten()
        self.fc1, self.fc2 = nn.Linear(8 * 4, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = torch.add(self.conv(x), x)
        y += x.relu()
        y = torch.relu(y.add(torch.concat([x[:, :4], x[:, 4:]], dim=1)))
        y = F.avg_pool2d(F.max_pool2d(y, 1), (2, 2), stride=[2, 2])
        y = F.hardtanh(F.leaky_relu(F.adaptive_avg_pool2d(y, (2, 2)), 0.2), -3, 3)
        flat = y.view(y.size(0), -1) + y.reshape(y.shape[0], -1) + self.flatten(y) + torch.flatten(y, start_dim=1)
        flat = F.dropout(flat + y.flatten(1), 0.5, self.training)
        return F.softmax(self.fc2(torch.sigmoid(F.relu6(self.fc1(flat)))), dim=1)


class FixedView(Model):
    """The batch size is read off the input, and the map is flattened by numbers: neither is torch.flatten."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv = conv3x3(8, 8)
        self.fc1, self.fc2, self.fc3 = nn.Linear(8 * 64, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        batch = x.size(0)
        x = F.relu(self.conv(F.relu(self.bn(self.stem(x)))))
        x = F.relu(self.fc1(x.view(-1, 8 * 64)))
        x = F.relu(self.fc2(x.view(batch, 16)))
        return self.fc3(x)


class Shuffle(Model):
    """ReLU, then a channel shuffle (view, transpose, view) and a chunk, then a convolution that may be binary."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv3x3(3, 16), nn.BatchNorm2d(16)
        self.conv, self.last = conv3x3(8, 8), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        left, right = x.chunk(2, dim=1)
        return self.last(torch.cat([left, self.conv(right)], 1))


class Gate(nn.Module):
    """Takes a branch that depends on values: torch.fx cannot trace it. Has a layer of its own."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class UntraceableSubmodule(Model):
    """A chain with a `Gate` in its middle."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.inner, self.bn2 = nn.Sequential(Gate(8)), nn.BatchNorm2d(8)
        self.conv, self.last = conv3x3(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.last(self.conv(self.bn2(self.inner(self.bn(self.stem(x))))))


class UntraceableForward(Model):
    """Its own forward branches on values."""

    def __init__(self):
        super().__init__()
        self.conv = conv3x3(3, 8)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class DropoutBeforeLinear(Model):
    """Dropouts (two, and an Identity) between the batch norm and a binary linear layer."""

    shapes = ((4, 12),)

    def __init__(self, p=0.5):
        super().__init__()
        self.fc1, self.bn = nn.Linear(12, 16), nn.BatchNorm1d(16)
        self.drop1, self.drop2 = nn.Dropout(p), nn.Dropout(p)
        self.fc2, self.fc3 = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.fc3(self.fc2(self.drop2(self.drop1(self.bn(self.fc1(x))))))


class SigmoidBeforeConv(Model):
    """One convolution reads a sigmoid: its sign would be constant. Another reads a batch norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.plain, self.gated = conv3x3(8, 8), conv3x3(8, 8)
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.plain(self.bn(self.stem(x)))
        return self.last(self.gated(self.pool(torch.sigmoid(x))))


class ManyInputsOutputs(Model):
    """Two inputs; a tuple, or a dictionary, of outputs; a binary layer gives one of them directly."""

    shapes = (IMAGE, (2, 8, 8, 8))

    def __init__(self, as_dict=False):
        super().__init__()
        self.as_dict = as_dict
        self.stem, self.bn = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = conv3x3(8, 8), conv3x3(8, 8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x, skip):
        x = F.relu(self.bn(self.stem(x)))
        features = self.conv2(F.relu(self.conv1(x) + skip))
        logits = self.last(features)
        return {"logits": logits, "features": features} if self.as_dict else (logits, features)


class Grouped(Model):
    """Depthwise and grouped convolutions, odd channel counts, a kernel that is not square, a dilated one."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9)
        self.depthwise, self.bn1 = nn.Conv2d(9, 9, 3, padding=1, groups=9, bias=False), nn.BatchNorm2d(9)
        self.grouped, self.bn2 = nn.Conv2d(9, 15, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(15)
        self.tall, self.bn3 = nn.Conv2d(15, 5, (3, 1), stride=(2, 1), padding=(1, 0)), nn.BatchNorm2d(5)
        self.dilated, self.bn4 = nn.Conv2d(5, 7, (2, 3), padding=1, dilation=(1, 2)), nn.BatchNorm2d(7)
        self.last = nn.Conv2d(7, 3, 1)

    def forward(self, x):
        x = self.bn0(self.stem(x))
        x = self.bn2(self.grouped(self.bn1(self.depthwise(x))))
        return self.last(self.bn4(self.dilated(self.bn3(self.tall(x)))))


HAZARDS = {
    "chain": Chain,
    "chain in-place": lambda: Chain(inplace=True),
    "no batch norm": NoBatchNorm,
    "residual": Residual,
    "residual downsample": lambda: Residual(downsample=True),
    "pre-activation": PreActivation,
    "bottleneck": Bottleneck,
    "two readers": TwoReaders,
    "shared layer": SharedLayer,
    "in-place read again": InplaceReadAgain,
    "in-place calls": InplaceCalls,
    "functional": Functional,
    "fixed view": FixedView,
    "shuffle": Shuffle,
    "untraceable submodule": UntraceableSubmodule,
    "dropout": DropoutBeforeLinear,
    "sigmoid": SigmoidBeforeConv,
    "tuple of outputs": ManyInputsOutputs,
    "dictionary of outputs": lambda: ManyInputsOutputs(as_dict=True),
    "grouped": Grouped,
}
"""Makers of every model above that can be converted."""


def flat(outputs):
    """Outputs of a model as a list of tensors."""
    if isinstance(outputs, dict):
        return list(outputs.values())
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def loss_of(model, inputs):
    """A scalar that depends on every output."""
    return sum(output.float().square().mean() for output in flat(model(*inputs)))
