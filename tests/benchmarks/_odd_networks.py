"""Small networks with what trips tools up: each form was seen in networks that people publish.

A factory takes `num_classes` and gives a network for images [B, 3, 32, 32], or one that has to be
refused: `REFUSED` has a word of the message that says why.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REFUSED = {
    "overwritten": "inplace",
    "two_inputs": "mask",
    "counts": "calls",
    "extra_state": "_extra_state",
    "lazy_head": "LazyLinear",
    "joined_bias": "Left at their width",
    "random": "draws random numbers",
    "detached": "depends on none of its weights",
    "kth": "aten.kthvalue",
    "exits": "branches on a value",
    "half": "no float32 network",
    "grey": "takes images of 1 channels",
    "wrong_head": "for other inputs at any image size",
    "fixed_classes": "expected logits [1, 10]",
}
WARNED = {"batch_statistics": "depend"}


class Small(nn.Module):
    """Two convolutions under norms, a pool and a head; the parts are the caller's."""

    def __init__(
        self,
        classes: int,
        first: nn.Module | None = None,
        second: nn.Module | None = None,
        norm: type[nn.Module] = nn.BatchNorm2d,
        between: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first = first or nn.Conv2d(3, 16, 3, 2, 1)
        self.one = norm(16)
        self.between = between or nn.Identity()
        self.second = second or nn.Conv2d(16, 32, 3, 2, 1)
        self.two = norm(32)
        self.head = nn.Linear(32, classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.between(F.relu(self.one(self.first(x))))
        return F.relu(self.two(self.second(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def plain(num_classes: int) -> nn.Module:
    return Small(num_classes)


class Statements(Small):
    def features(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x))
        x.clip_(0, 6)
        x = self.two(self.second(x))
        kept = x
        x += 0.1
        x[:, :8].mul_(1.5)
        F.leaky_relu_(x, 0.1)
        return kept


def statements(num_classes: int) -> nn.Module:
    return Statements(num_classes)


class BatchStatistics(nn.BatchNorm2d):
    def __init__(self, width: int) -> None:
        super().__init__(width, track_running_stats=False)


class Overwritten(Small):
    """Autograd needs what is overwritten, so that it cannot be trained."""

    def features(self, x: Tensor) -> Tensor:
        x = F.leaky_relu_(self.two(self.second(self.one(self.first(x)))), 0.1)
        x[:, :8].mul_(1.5)
        return x


def overwritten(num_classes: int) -> nn.Module:
    return Overwritten(num_classes)


def batch_statistics(num_classes: int) -> nn.Module:
    return Small(num_classes, norm=BatchStatistics)


class Viewed(Small):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.head = nn.Linear(32 * 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(x.view(x.size(0), -1))  # type: ignore[no-any-return]


def viewed(num_classes: int) -> nn.Module:
    return Viewed(num_classes)


class Cube(nn.Module):
    """A parameter of four and a buffer of five dimensions, neither of which is a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 16, 1, 1))
        self.register_buffer("shift", torch.zeros(1, 1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift[0]  # type: ignore[index, no-any-return]


def five_dimensions(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Cube())


class HeadFirst(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(32, classes)
        self.trunk = Small(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.trunk(x)))  # type: ignore[no-any-return]


def head_first(num_classes: int) -> nn.Module:
    return HeadFirst(num_classes)


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight)) * 16.0


def cosine_head(num_classes: int) -> nn.Module:
    made = Small(num_classes)
    made.head = OwnLinear(32, num_classes, bias=False)
    return made


def weight_norm(num_classes: int) -> nn.Module:
    made = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 32, 3, 2, 1))
    return Small(num_classes, second=made)


def spectral_norm(num_classes: int) -> nn.Module:
    made = nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 32, 3, 2, 1))
    return Small(num_classes, second=made)


class Named(nn.Module):
    """Children under names that a traced module has for itself."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.code, self.meta = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.recompile, self.graph = nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.print_readable = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.meta(self.code(x)))
        x = F.relu(self.graph(self.recompile(x)))
        return self.print_readable(x.mean((2, 3)))  # type: ignore[no-any-return]


def named(num_classes: int) -> nn.Module:
    return Named(num_classes)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def standardised(num_classes: int) -> nn.Module:
    return Small(num_classes, second=Standardised(16, 32, 3, 2, 1))


class Auxiliary(Small):
    """Two outputs in training and one in evaluation."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.auxiliary = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        early = F.relu(self.one(self.first(x)))
        logits = self.head(F.relu(self.two(self.second(early))).mean((2, 3)))
        return (logits, self.auxiliary(early.mean((2, 3)))) if self.training else logits


def auxiliary(num_classes: int) -> nn.Module:
    return Auxiliary(num_classes)


class Dictionary(Small):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        x = self.features(x).mean((2, 3))
        return {"logits": self.head(x), "embedding": x}


def dictionary(num_classes: int) -> nn.Module:
    return Dictionary(num_classes)


class Instance(nn.InstanceNorm2d):
    def __init__(self, width: int) -> None:
        super().__init__(width, affine=True)


def instance_norm(num_classes: int) -> nn.Module:
    return Small(num_classes, norm=Instance)


def sync_norm(num_classes: int) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(Small(num_classes))


class Cbam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.mask(pooled).sigmoid()


def cbam(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Cbam())


def multiplier(num_classes: int) -> nn.Module:
    between = nn.Sequential(
        nn.Conv2d(16, 32, 3, 1, 1, groups=16), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1)
    )
    return Small(num_classes, between=between)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, 16, 3, 3) * 0.1)
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("variance", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, padding=1)
        return F.relu(F.batch_norm(x, self.mean, self.variance, training=False))  # type: ignore[arg-type]


def functional(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Functional())


def reflected(num_classes: int) -> nn.Module:
    return Small(num_classes, nn.Conv2d(3, 16, 3, 2, 1, padding_mode="reflect"),
                 nn.Conv2d(16, 32, 3, 2, 1, padding_mode="circular"))  # fmt: skip


class Padding(nn.Conv2d):
    """As re-implementations of EfficientNet pad."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, 2, bias=False)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)


def own_padding(num_classes: int) -> nn.Module:
    return Small(num_classes, Padding(3, 16), Padding(16, 32))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, 1, 1)
        self.one, self.two = nn.BatchNorm2d(16), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.conv(F.relu(self.one(self.conv(x)))))  # type: ignore[no-any-return]


def shared(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Twice())


def lazy_head(num_classes: int) -> nn.Module:
    made = Small(num_classes)
    made.head = nn.LazyLinear(num_classes)
    return made


class Counting(Small):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = torch.cat([self.calls.flatten(), torch.ones(1, dtype=torch.int64)])
        return super().forward(x)


def counts(num_classes: int) -> nn.Module:
    return Counting(num_classes)


class Extra(Small):
    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        return None


def extra_state(num_classes: int) -> nn.Module:
    return Extra(num_classes)


class TwoInputs(Small):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


def two_inputs(num_classes: int) -> nn.Module:
    return TwoInputs(num_classes)


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(16, 64, 3, padding=1, groups=4)
        self.back = nn.Conv2d(16, 16, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.channel_shuffle(self.wide(x), 4)
        return self.back(F.pixel_shuffle(F.silu(x), 2))  # type: ignore[no-any-return]


def shuffled(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Shuffled())


class Coordinates(nn.Module):
    """Coordinate attention (Hou et al., 2021): pooled over rows and over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.join, self.norm = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8)
        self.down, self.across = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.size()
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)
        y = F.hardswish(self.norm(self.join(torch.cat([rows, columns], 2))))
        rows, columns = torch.split(y, [h, w], dim=2)
        return x * self.down(rows).sigmoid() * self.across(columns.permute(0, 1, 3, 2)).sigmoid()


def coordinates(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Coordinates())


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        share = torch.sigmoid(x)
        return gradient * share * (1 + x * (1 - share))


class Swish(nn.Module):
    """A gradient of its own, to save memory."""

    def forward(self, x: Tensor) -> Tensor:
        return _Swish.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def own_gradient(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Swish())


class Gate(nn.Module):
    """NAFNet's block (Chen et al., 2022): a norm over channels by hand, half times half."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))
        self.wide, self.back = nn.Conv2d(16, 64, 3, padding=1), nn.Conv2d(32, 16, 1)
        self.beta = nn.Parameter(torch.full((1, 16, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        y = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        y = self.weight.view(1, -1, 1, 1) * y + self.bias.view(1, -1, 1, 1)
        one, two = self.wide(y).chunk(2, dim=1)
        return x + self.back(one * two) * self.beta


def half_times_half(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Gate())


class JoinedBias(nn.Module):
    """Tokens with one projection whose bias has no part for the keys, as in BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 16)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        made = F.linear(tokens, self.qkv.weight, bias).reshape(b, h * w, 3, 4, c // 4)
        q, k, v = made.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(y).transpose(1, 2).reshape(b, c, h, w)


def joined_bias(num_classes: int) -> nn.Module:
    return Small(num_classes, between=JoinedBias())


class Bottleneck(nn.Module):
    """A linear layer that is seen as a map again, and transposed convolutions after it."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(16 * 16 * 16, 32 * 4 * 4)
        self.one = nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.two = nn.ConvTranspose2d(16, 16, 3, 2, 1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.code(x.flatten(1))).view(-1, self.one.in_channels, 4, 4)
        return F.relu(self.two(F.relu(self.one(x))))


def map_again(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Bottleneck())


class Kernels(nn.Module):
    """A kernel that is the mean of several by learned shares."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(3, 16, 16, 3, 3) * 0.1)
        self.share = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.einsum("k,koihw->oihw", self.share.softmax(0), self.kernels)
        return F.relu(F.conv2d(x, kernel, padding=1))


def mixed_kernels(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Kernels())


class Annealed(Small):
    """A temperature, an ordinary number, falls with every training step."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.temperature = 4.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.temperature = max(1.0, self.temperature - 0.05)
        return super().forward(x) / self.temperature


def annealed(num_classes: int) -> nn.Module:
    return Annealed(num_classes)


class Prototypes(Small):
    """A class for the best of three prototypes, by einsum."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.head = nn.Identity()  # type: ignore[assignment]
        self.prototypes = nn.Parameter(torch.randn(classes, 3, 32) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3))
        return torch.einsum("bd,kpd->bkp", x, self.prototypes).amax(-1)


def prototypes(num_classes: int) -> nn.Module:
    return Prototypes(num_classes)


class Even(nn.Module):
    """Padded unequally: even kernels, and dilated ones, with `same`."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Conv2d(16, 16, 4, padding="same")
        self.dilated = nn.Conv2d(16, 16, 3, padding="same", dilation=2)
        self.wide = nn.Conv2d(16, 16, (1, 6), padding="same", padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.wide(F.relu(self.dilated(F.relu(self.even(x))))))


def even_padding(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Even())


class Sizes(nn.Module):
    """Another way for large maps than for small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.large(x) if x.shape[-1] > 8 else self.small(x))


def branch_on_size(num_classes: int) -> nn.Module:
    return Small(num_classes, between=Sizes())


class Random(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head((x + torch.randn_like(x)).mean((2, 3)))  # type: ignore[no-any-return]


def random(num_classes: int) -> nn.Module:
    return Random(num_classes)


class Detached(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def detached(num_classes: int) -> nn.Module:
    return Detached(num_classes)


class Kth(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(2).kthvalue(3, dim=2).values)  # type: ignore[no-any-return]


def kth(num_classes: int) -> nn.Module:
    return Kth(num_classes)


class Exits(Small):
    """Leaves early where it is sure."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.softmax(1).max() > 0.9 else y + self.head.bias


def exits(num_classes: int) -> nn.Module:
    return Exits(num_classes)


def half(num_classes: int) -> nn.Module:
    return Small(num_classes).half()


def grey(num_classes: int) -> nn.Module:
    return Small(num_classes, first=nn.Conv2d(1, 16, 3, 2, 1))


def wrong_head(num_classes: int) -> nn.Module:
    made = Small(num_classes)
    made.head = nn.Linear(33, num_classes)
    return made


def fixed_classes(num_classes: int) -> nn.Module:
    return Small(7)


NETWORKS = (
    plain, statements, overwritten, batch_statistics, viewed, five_dimensions, head_first,
    cosine_head,
    weight_norm, spectral_norm, named, standardised, auxiliary, dictionary, instance_norm,
    sync_norm, cbam, multiplier, functional, reflected, own_padding, shared, lazy_head, counts,
    extra_state, two_inputs, shuffled, coordinates, own_gradient, half_times_half, joined_bias,
    map_again, mixed_kernels, annealed, prototypes, even_padding, branch_on_size, random, detached,
    kth, exits, half, grey, wrong_head, fixed_classes,
)  # fmt: skip
