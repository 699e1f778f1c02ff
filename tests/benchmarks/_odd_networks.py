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


NETWORKS = (
    plain, statements, overwritten, batch_statistics, viewed, five_dimensions, head_first,
    cosine_head,
    weight_norm, spectral_norm, named, standardised, auxiliary, dictionary, instance_norm,
    sync_norm, cbam, multiplier, functional, reflected, own_padding, shared, lazy_head, counts,
    extra_state, two_inputs, shuffled,
)  # fmt: skip
