"""Reference networks in torch, with the tensor names of the checkpoints in circulation, for tests and benchmarks."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

RESNETS = {
    "resnet18": ((2, 2, 2, 2), False, 64),
    "resnet34": ((3, 4, 6, 3), False, 64),
    "resnet50": ((3, 4, 6, 3), True, 64),
    "resnet101": ((3, 4, 23, 3), True, 64),
    "resnet152": ((3, 8, 36, 3), True, 64),
    "wide_resnet50_2": ((3, 4, 6, 3), True, 128),
    "wide_resnet101_2": ((3, 4, 23, 3), True, 128),
}
EFFICIENTNET_LITES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}


class Basic(nn.Module):
    def __init__(self, inputs, width, stride, base_width, v1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride, base_width, v1):
        super().__init__()
        inner = width * base_width // 64
        self.conv1 = nn.Conv2d(inputs, inner, 1, stride if v1 else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, 1 if v1 else stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def shortcut(inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """torchvision's ResNet; `v1` puts the stride on a block's first convolution."""

    def __init__(self, name, v1=False):
        super().__init__()
        repeats, bottleneck, base_width = RESNETS[name]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for k, count in enumerate(repeats):
            width = 64 * 2**k
            blocks = []
            for i in range(count):
                stride = 2 if k > 0 and i == 0 else 1
                blocks.append((Bottleneck if bottleneck else Basic)(channels, width, stride, base_width, v1))
                channels = 4 * width if bottleneck else width
            setattr(self, f"layer{k + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        levels = {}
        for k in range(1, 5):
            x = levels[k] = getattr(self, f"layer{k}")(x)
        levels["last"] = x.mean((2, 3), keepdim=True)
        return levels


class SameConv(nn.Conv2d):
    """TensorFlow's SAME padding."""

    def forward(self, x):
        pads = []
        for n, k, s in zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            total = max((math.ceil(n / s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class MBConv(nn.Module):
    def __init__(self, inputs, outputs, expansion, kernel, stride):
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self._expand_conv = SameConv(inputs, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self.expansion = expansion
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = SameConv(inner, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expansion > 1 else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skip else y


class EfficientNetLite(nn.Module):
    def __init__(self, name):
        super().__init__()
        width, depth = EFFICIENTNET_LITES[name]
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, self.strides, channels = [], [], 32
        for args in [
            "r1k3s1e1o16",
            "r2k3s2e6o24",
            "r2k5s2e6o40",
            "r3k3s2e6o80",
            "r3k5s1e6o112",
            "r4k5s2e6o192",
            "r1k3s1e6o320",
        ]:
            r, k, s, e, o = (int("".join(c for c in part if c.isdigit())) for part in split_letters(args))
            outputs = round_filters(o * width)
            for i in range(r if o in (16, 320) else math.ceil(r * depth)):
                blocks.append(MBConv(channels, outputs, e, k, s if i == 0 else 1))
                self.strides.append(s if i == 0 else 1)
                channels = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(channels, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        levels, reduction = {}, 2
        for block, stride in zip(self._blocks, self.strides, strict=True):
            reduction *= stride
            x = block(x)
            if reduction >= 4:
                levels[int(math.log2(reduction)) - 1] = x  # the last block at a reduction wins
        levels["last"] = x.mean((2, 3), keepdim=True)
        return levels


def split_letters(text):
    starts = [i for i, c in enumerate(text) if c.isalpha()] + [len(text)]
    return [text[a:b] for a, b in itertools.pairwise(starts)]


def round_filters(filters, divisor=8):
    new = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return int(new + divisor) if new < 0.9 * filters else int(new)


def build(name, *, seed=0, v1=False):
    """A network in evaluation mode with random parameters and BatchNorm statistics.

    The last BatchNorm of a residual branch gets a smaller gain, as in trained networks: otherwise activations grow to
    1e9 in the deepest ResNets, and in EfficientNets ReLU6 saturates and amplifies torch's own rounding to 2e-5.
    """
    torch.manual_seed(seed)
    model = EfficientNetLite(name) if name in EFFICIENTNET_LITES else ResNet(name, v1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.3)
            nn.init.normal_(layer.running_mean, 0.0, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in")
    for block in model.modules():
        if isinstance(block, Basic | Bottleneck | MBConv):
            last = getattr(block, {Basic: "bn2", Bottleneck: "bn3", MBConv: "_bn2"}[type(block)])
            nn.init.uniform_(last.weight, 0.1, 0.5)
    return model.eval()


def preprocess(name, images):
    """uint8 [B, H, W, 3] RGB -> the float32 [B, 3, H, W] that the weights of that network expect."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2).to(torch.float32)
    if name in EFFICIENTNET_LITES:
        return (x - 127) / 128
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x / 255 - mean[:, None, None]) / std[:, None, None]


def folded(model):
    """The same network with every BatchNorm folded into its convolution (for a fair comparison of speed)."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for parent in model.modules():
        names = [n for n, child in parent.named_children() if isinstance(child, nn.Conv2d)]
        norms = [n for n, child in parent.named_children() if isinstance(child, nn.BatchNorm2d)]
        for conv, norm in zip(names, norms, strict=True):
            setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
            setattr(parent, norm, nn.Identity())
    return model
