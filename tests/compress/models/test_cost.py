import torch
import torchvision.models as tv
from torch import Tensor, nn

from vcompress.compress.models.cost import count_macs, count_parameters


def test_resnet18_at_224_px_has_the_published_macs_and_parameters() -> None:
    model = tv.resnet18(weights=None)
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) == 1_814_073_344
    assert count_parameters(model) == 11_689_512


def test_attention_counts_in_the_projections_and_in_the_products() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = images.flatten(2).transpose(1, 2)  # [B, 16, 8]
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    # 16 tokens: q, k, v and output projections of 8 x 8, two products of 16 x 16 x 8
    assert count_macs(Attention(), torch.zeros(1, 8, 4, 4)) == 16 * 4 * 64 + 2 * 16 * 16 * 8


def test_counting_a_batch_counts_one_image() -> None:
    model = nn.Conv2d(3, 4, 3)
    assert count_macs(model, torch.zeros(5, 3, 8, 8)) == 6 * 6 * 4 * 3 * 9


def test_counting_leaves_modes_statistics_and_observers_alone() -> None:
    class Observed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.norm = nn.BatchNorm2d(4)
            self.register_buffer("largest", torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.largest.copy_(images.max())
            return self.norm(self.conv(images))

    model = Observed().train()
    model.conv.eval()
    assert count_macs(model, torch.ones(1, 3, 4, 4)) == 16 * 12
    assert model.training and model.norm.training and not model.conv.training
    assert model.largest.item() == 0.0
    assert int(model.norm.num_batches_tracked) == 0


def test_a_branch_on_the_data_is_counted_with_real_numbers() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.wide(images) if images.mean() > 0 else self.narrow(images)

    model = Branching()
    assert count_macs(model, torch.ones(1, 3, 2, 2)) == 4 * 24
    assert count_macs(model, -torch.ones(1, 3, 2, 2)) == 4 * 6


def test_a_module_under_two_names_is_whole_after_counting() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.one = self.two = nn.BatchNorm2d(4)
            self.tied = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.tied.weight = self.conv.weight

        def forward(self, images: Tensor) -> Tensor:
            return self.tied(self.two(self.conv(self.one(images))))  # type: ignore[no-any-return]

    model = Twice().eval()
    images = torch.randn(1, 4, 8, 8)
    before = model(images)
    assert count_macs(model, images) == 2 * 8 * 8 * 4 * 4 * 9
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert model.tied.weight is model.conv.weight
    assert torch.equal(model(images), before)
