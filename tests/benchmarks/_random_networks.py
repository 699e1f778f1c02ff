"""Networks drawn at random from the forms that people's networks have.

`network(seed)` is always the same network for a seed. Its stages are pieces of `PIECES`, each of
which keeps a map [B, C, H, W] a map; `Network.said` names them, for a table of what failed.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HandNorm(nn.Module):
    """A layer norm over the channels of a map, as ConvNeXt's and NAFNet's authors write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        y = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * y + self.bias[:, None, None]


def norm(rng: random.Random, width: int) -> nn.Module:
    kind = rng.choice(["bn"] * 6 + ["gn", "in", "hand", "none", "frozen"])
    if kind == "bn":
        return nn.BatchNorm2d(width, eps=rng.choice([1e-5, 1e-3]))
    if kind == "frozen":
        from torchvision.ops import FrozenBatchNorm2d

        return FrozenBatchNorm2d(width)
    if kind == "gn":
        return nn.GroupNorm(rng.choice([1, 4]), width)
    if kind == "in":
        return nn.InstanceNorm2d(width, affine=rng.random() < 0.5)
    return HandNorm(width) if kind == "hand" else nn.Identity()


def act(rng: random.Random, width: int) -> nn.Module:
    return rng.choice([
        nn.ReLU, lambda: nn.ReLU(inplace=True), nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.ELU,
        lambda: nn.LeakyReLU(0.1, inplace=True), lambda: nn.PReLU(width), nn.PReLU, nn.Mish,
        nn.Tanh, nn.Softplus, lambda: nn.Hardtanh(-1, 2), nn.Hardsigmoid,
    ])()  # fmt: skip


def conv(rng: random.Random, inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    kernel = rng.choice([1, 3, 3, 3, 5, (1, 3), (3, 1), 2])
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilation = rng.choice([1, 1, 1, 2])
    groups = rng.choice([1, 1, 1, 4]) if inputs % 4 == 0 and outputs % 4 == 0 else 1
    padding: str | tuple[int, int]
    padding = tuple(dilation * (side - 1) // 2 for side in sides)  # type: ignore[assignment]
    if stride == 1 and rng.random() < 0.2:
        padding = "same"
    mode = rng.choice(["zeros"] * 8 + ["reflect", "replicate", "circular"])
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding, dilation, groups, rng.random() < 0.5, mode
    )


def block(rng: random.Random, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(conv(rng, inputs, outputs, stride), norm(rng, outputs), act(rng, outputs))


class Plain(nn.Module):
    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.body = block(rng, width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def like(x: Tensor, y: Tensor) -> Tensor:
    """`y` at the size of `x`: even kernels and valid convolutions give another."""
    return y if x.shape[2:] == y.shape[2:] else F.interpolate(y, size=x.shape[2:], mode="bilinear")


class Residual(nn.Module):
    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.first, self.second = block(rng, width, width), conv(rng, width, width)
        self.norm, self.act = norm(rng, width), act(rng, width)
        self.way = rng.choice(["+", "iadd", "add", "add_", "sub", "alpha", "sum"])

    def forward(self, x: Tensor) -> Tensor:
        y = like(x, self.norm(self.second(self.first(x))))
        if self.way == "+":
            y = y + x
        elif self.way == "iadd":
            y += x
        elif self.way == "add":
            y = torch.add(x, y)
        elif self.way == "add_":
            y = y.add_(x)
        elif self.way == "sub":
            y = x - y
        elif self.way == "alpha":
            y = torch.add(y, x, alpha=0.5)
        else:
            y = sum([x, y])  # type: ignore[assignment]
        return self.act(y)  # type: ignore[no-any-return]


class Narrowing(nn.Module):
    """A stride, and the shortcut that it needs."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.body = block(rng, width, width, 2)
        self.shortcut = rng.choice([
            nn.Conv2d(width, width, 1, 2, bias=False), nn.AvgPool2d(2, ceil_mode=True),
            nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y + like(y, self.shortcut(x))  # type: ignore[no-any-return]


class Concat(nn.Module):
    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.one, self.two = block(rng, width, 8), block(rng, width, 16)
        self.keeps = rng.random() < 0.5
        self.join = nn.Conv2d(24 + width * self.keeps, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [like(x, self.one(x)), like(x, self.two(x))]
        return self.join(torch.cat(parts + [x] * self.keeps, dim=1))  # type: ignore[no-any-return]


class Squeeze(nn.Module):
    """Squeeze and excitation, of five writings."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.linear = rng.random() < 0.4
        layer = nn.Linear if self.linear else (lambda i, o: nn.Conv2d(i, o, 1))
        self.down, self.up = layer(width, 8), layer(8, width)
        self.gate = rng.choice([torch.sigmoid, F.hardsigmoid, lambda v: F.relu6(v + 3) / 6])
        self.inplace = rng.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            y = x.mean((2, 3))
            y = self.up(F.relu(self.down(y))).view(x.size(0), -1, 1, 1)
        else:
            y = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)), inplace=True))
        y = self.gate(y)
        return x.mul_(y) if self.inplace else x * y


class Mask(nn.Module):
    """A mask of one channel, from a convolution or from pooling over the channels (CBAM)."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.pooled = rng.random() < 0.5
        self.conv = nn.Conv2d(2 if self.pooled else width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.pooled:
            y = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.conv(y).sigmoid()


class Halves(nn.Module):
    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.way = rng.choice(["chunk", "split", "slice", "glu", "shuffle"])
        self.body = block(rng, width // 2, width // 2)
        self.wide = nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        if self.way == "chunk":
            a, b = x.chunk(2, dim=1)
        elif self.way == "split":
            a, b = torch.split(x, half, 1)
        else:
            a, b = x[:, :half], x[:, half:]
        if self.way == "glu":
            return self.wide(a * torch.sigmoid(b))  # type: ignore[no-any-return]
        y = torch.cat([a, like(a, self.body(b))], dim=1)
        if self.way == "shuffle":
            b_, c, h, w = y.shape
            y = y.view(b_, 2, c // 2, h, w).transpose(1, 2).reshape(b_, c, h, w)
        return y


class Inverted(nn.Module):
    """Depthwise between two of 1 x 1, with a multiplier at times."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        factor = rng.choice([1, 1, 2])
        self.body = nn.Sequential(
            nn.Conv2d(width, 32, 1, bias=False), nn.BatchNorm2d(32), act(rng, 32),
            nn.Conv2d(32, 32 * factor, rng.choice([3, 5]), padding=1, groups=32),
            norm(rng, 32 * factor), act(rng, 32 * factor), nn.Conv2d(32 * factor, width, 1),
            nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + like(x, self.body(x))


class Upward(nn.Module):
    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.way = rng.choice(["transposed", "grouped", "pixels", "nearest", "bilinear"])
        groups = 4 if self.way == "grouped" else 1
        self.up = nn.ConvTranspose2d(width, 16, 2, 2, groups=groups)
        self.wide = nn.Conv2d(width, 64, 1)
        self.down = nn.Conv2d({"transposed": 16, "grouped": 16, "pixels": 16}.get(self.way, width),
                              width, 3, 2, 1)  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.way in ("transposed", "grouped"):
            y = self.up(x)
        elif self.way == "pixels":
            y = F.pixel_shuffle(self.wide(x), 2)
        elif self.way == "nearest":
            y = F.interpolate(x, scale_factor=2)
        else:
            y = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.down(F.relu(y))  # type: ignore[no-any-return]


class Functional(nn.Module):
    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, width, 3, 3) / (3 * width**0.5))
        self.bias = nn.Parameter(torch.randn(width) * 0.1)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.norms, self.pads = rng.random() < 0.5, rng.choice([(1, 1, 1, 1), (2, 0, 1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(F.pad(x, self.pads), self.kernel, self.bias)
        if self.norms:
            y = F.batch_norm(y, self.mean, self.variance, training=False)  # type: ignore[arg-type]
        return F.leaky_relu(y, 0.2, inplace=True)


class Shared(nn.Module):
    """One convolution, applied twice, under one norm or two."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.one = nn.BatchNorm2d(width)
        self.two = self.one if rng.random() < 0.5 else nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(self.conv(F.relu(self.one(self.conv(x))))) + x)


class InPlace(nn.Module):
    """Calls whose result nobody takes: what they change is the tensor."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.way = rng.randrange(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.way == 0:
            y.clip_(-0.5, 1.0)
        elif self.way == 1:
            F.leaky_relu_(y, 0.1)
        elif self.way == 2:
            torch.relu_(y)
        elif self.way == 3:
            y[:, :4].mul_(2.0)
        elif self.way == 4:
            y[:, 2:5] = 0.0
        elif self.way == 5:
            kept = y
            y += x
            y = y * kept
        elif self.way == 6:
            y.neg_().clamp_min_(-0.3)
        else:
            flat = y.view(y.size(0), -1)
            flat.tanh_()
        return y


class Attention(nn.Module):
    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.way = rng.choice(["module", "hand", "call", "nhwc"])
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if self.way == "nhwc":
            return x + self.mlp(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        if self.way == "module":
            made = self.attention(normed, normed, normed, need_weights=False)[0]
        else:
            q, k, v = self.qkv(normed).reshape(b, h * w, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
            if self.way == "call":
                made = F.scaled_dot_product_attention(q, k, v)
            else:
                made = ((q @ k.transpose(-2, -1)) * (c // 4) ** -0.5).softmax(-1) @ v
            made = self.out(made.transpose(1, 2).reshape(b, h * w, c))
        tokens = tokens + made
        tokens = tokens + self.mlp(tokens)
        return tokens.transpose(1, 2).reshape(b, c, h, w)


class Arithmetic(nn.Module):
    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.way = rng.randrange(9)
        self.scale = nn.Parameter(torch.rand(width, 1, 1) + 0.5)
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.way == 0:
            return y * 0.5 + 1.0
        if self.way == 1:
            return torch.where(y > 0, y, 0.1 * y)
        if self.way == 2:
            return torch.maximum(x, y)
        if self.way == 3:
            return y.clamp(min=-0.2) * self.scale
        if self.way == 4:
            return torch.stack([x, y]).mean(0)
        if self.way == 5:
            return y - F.avg_pool2d(y, 3, 1, 1)
        if self.way == 6:
            return F.normalize(y, dim=1) * 2.0
        if self.way == 7:
            return x * (1 + y.tanh())
        return F.dropout(y, 0.1, self.training).pow(2).add(1.0).log()


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed (Qiao et al., weight standardisation, 2019)."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5) * 0.1
        return F.conv2d(x, weight, self.bias, padding=1)


class Padded(nn.Conv2d):
    """A convolution that pads by a module of its own, as EfficientNet's copies do."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__(width, width, 3, groups=rng.choice([1, width]), bias=False)
        self.static_padding = nn.ZeroPad2d(rng.choice([(1, 1, 1, 1), (0, 2, 0, 2)]))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.static_padding(x), self.weight, None, groups=self.groups)


class Branch(nn.Module):
    """Another way for large maps than for small ones, and by a setting."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.gamma: nn.Parameter | None = None
        if rng.random() < 0.5:
            self.gamma = nn.Parameter(torch.full((1, width, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.large(x) if x.shape[-1] > 8 else self.small(x)
        if self.gamma is not None:
            y = y * self.gamma
        return x + y  # type: ignore[no-any-return]


PIECES: tuple[Callable[[random.Random, int], nn.Module], ...] = (
    Plain, Plain, Residual, Residual, Narrowing, Concat, Squeeze, Mask, Halves, Inverted, Inverted,
    Upward, Functional, Shared, InPlace, Attention, Arithmetic, Standardised, Padded, Branch,
)  # fmt: skip


class Head(nn.Module):
    def __init__(self, rng: random.Random, width: int, side: int) -> None:
        super().__init__()
        self.way = rng.choice(["mean", "module", "view", "max", "conv", "odd"])
        inputs = width * (9 if self.way == "view" else 6 if self.way == "odd" else 1)
        self.pool = nn.AdaptiveAvgPool2d({"view": 3, "odd": (2, 3)}.get(self.way, 1))
        bias = rng.random() < 0.8
        self.classes: nn.Module = nn.Linear(inputs, 5, bias=bias)
        if self.way == "conv":
            self.classes = nn.Conv2d(width, 5, 1)
        elif rng.random() < 0.3:
            self.classes = nn.Sequential(
                nn.Linear(inputs, 16), nn.Hardswish(), nn.Dropout(0.2), self.classes_of(16, bias)
            )

    @staticmethod
    def classes_of(width: int, bias: bool) -> nn.Module:
        return nn.Linear(width, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "mean":
            y = x.mean([2, 3])
        elif self.way == "max":
            y = x.amax((2, 3))
        elif self.way == "conv":
            return self.classes(self.pool(x)).flatten(1)  # type: ignore[no-any-return]
        elif self.way == "view":
            y = self.pool(x).contiguous().view(x.size(0), -1)
        else:
            y = torch.flatten(self.pool(x), 1)
        return self.classes(y)  # type: ignore[no-any-return]


class Network(nn.Module):
    """A stem, some pieces and a head; `size` is (channels, height, width) of its images."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.size = (
            rng.choice([3, 3, 3, 1, 4]),
            *rng.choice([(16, 16), (17, 23), (32, 32), (24, 20)]),
        )
        width = rng.choice([16, 24, 32])
        drawn = [rng.choice(PIECES) for _ in range(rng.randint(2, 5))]
        self.stem = nn.Sequential(
            nn.Conv2d(self.size[0], width, 3, rng.choice([1, 2]), 1), nn.BatchNorm2d(width),
            act(rng, width),
        )  # fmt: skip
        self.stages = nn.ModuleList(piece(rng, width) for piece in drawn)
        self.head = Head(rng, width, min(self.size[1:]))
        self.returns = rng.choice(["tensor"] * 8 + ["dict", "tuple"])
        self.said = [stage_name(stage) for stage in self.stages] + [f"head {self.head.way}"]

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor] | tuple[Tensor, Tensor]:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        y = self.head(x)
        if self.returns == "dict":
            return {"out": y, "features": x}
        return (y, x) if self.returns == "tuple" else y


def stage_name(stage: nn.Module) -> str:
    way = getattr(stage, "way", None)
    return type(stage).__name__ + ("" if way is None else f" {way}")


def images(network: Network, count: int, seed: int = 0) -> Tensor:
    """Noise whose mean, contrast and scale differ from image to image, [N, C, H, W] float32."""
    generator = torch.Generator().manual_seed(seed)
    channels, *sides = network.size
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    fine = torch.randn(count, channels, *sides, generator=generator)
    contrast = torch.rand(count, 1, 1, 1, generator=generator) + 0.3
    smooth = F.interpolate(coarse, size=tuple(sides), mode="bilinear")
    return (smooth + 0.3 * fine) * contrast + 0.3 * torch.randn(count, 1, 1, 1, generator=generator)


def network(seed: int) -> Network:
    """The network of a seed in evaluation, its batch norms with the statistics of images."""
    made = Network(seed)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    made.train()
    with torch.no_grad():
        for part in torch.split(images(made, 64, seed=1), 32):
            made(part)
    return made.eval()
