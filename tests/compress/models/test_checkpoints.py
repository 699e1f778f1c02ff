"""Checkpoints that people have, and files that are not what they seem."""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.models.checkpoints import infer_classes, load_into

Tensors = dict[str, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.fixture
def net(tiny_nets: Any) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = tiny_nets.batch(num_classes=4)
    for buffer in model.buffers():  # so that an averaged copy differs from them
        if buffer.is_floating_point():
            buffer.normal_().abs_()
    return model


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return OrderedDict((prefix + k, v) for k, v in tensors.items())


def changed(tensors: Tensors) -> Tensors:
    return {k: v + 1 for k, v in tensors.items()}


def save(kind: str, sd: Tensors, path: Path) -> Path:
    """A checkpoint as the named project writes it; `sd` is what should be taken from it."""
    old = changed(sd)
    args = argparse.Namespace(model="resnet50", lr=0.1, data_path="/data")
    extra = {"epoch": 9, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "args": args}
    contents: dict[str, Any] = {
        "plain": sd,
        "torchvision": {"model": sd, "lr_scheduler": {"last_epoch": 9}, **extra},
        "torchvision with EMA": {
            "model": old, **extra,
            "model_ema": {"n_averaged": torch.tensor(7), **prefixed("module.", sd)},
        },
        "timm with EMA": {"arch": "resnet50", "state_dict": old, "state_dict_ema": sd,
                          "metric": 0.9, "version": 2, **extra},
        "Lightning": {
            "state_dict": {**prefixed("model.", sd), "criterion.weight": torch.ones(4)},
            "pytorch-lightning_version": "2.4.0", "global_step": 5, "hyper_parameters": {"lr": 0.1},
            "callbacks": {}, "loops": {}, "epoch": 3,
        },
        "DataParallel": prefixed("module.", sd),
        "DataParallel under state_dict": {"state_dict": prefixed("module.", sd), "best_acc1": 0.7},
        "compiled": prefixed("_orig_mod.", sd),
        "compiled inside DataParallel": {"model": prefixed("module._orig_mod.", sd)},
        "compiled DataParallel in Lightning": {
            "state_dict": prefixed("model._orig_mod.module.", sd)
        },
        "backbone": prefixed("backbone.", sd),
    }  # fmt: skip
    if kind == "safetensors":
        save_file(sd, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    if kind == "legacy":
        torch.save({"net": sd}, path, _use_new_zipfile_serialization=False)
        return path
    torch.save(contents[kind], path)
    return path


KINDS = {
    "plain": (None, ""), "torchvision": ("model", ""),
    "torchvision with EMA": ("model_ema", "module."),
    "timm with EMA": ("state_dict_ema", ""), "Lightning": ("state_dict", "model."),
    "DataParallel": (None, "module."), "DataParallel under state_dict": ("state_dict", "module."),
    "compiled": (None, "_orig_mod."),
    "compiled inside DataParallel": ("model", "module._orig_mod."),
    "compiled DataParallel in Lightning": ("state_dict", "model._orig_mod.module."),
    "backbone": (None, "backbone."), "safetensors": (None, ""), "legacy": ("net", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_weights_are_found_in_each_kind_of_checkpoint(
    net: nn.Module, tiny_nets: Any, tmp_path: Path, kind: str
) -> None:
    path = save(kind, net.state_dict(), tmp_path / "c.pth")
    fresh = tiny_nets.batch(num_classes=4)
    assert infer_classes(path, tiny_nets.batch(num_classes=1237), ["9"]) == 4
    loaded = load_into(fresh, path)
    assert (loaded.key, loaded.prefix) == KINDS[kind]
    assert loaded.missing == ()
    assert loaded.left_over == (("criterion.weight",) if kind == "Lightning" else ())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in fresh.state_dict().items())


def test_missing_and_left_over_tensors_are_named(
    net: nn.Module, tiny_nets: Any, tmp_path: Path
) -> None:
    tensors = net.state_dict()
    del tensors["3.weight"], tensors["1.bias"]
    tensors["layer9.weight"] = torch.ones(1)
    torch.save(tensors, tmp_path / "c.pth")
    with pytest.raises(UserError) as caught:
        load_into(tiny_nets.batch(num_classes=4), tmp_path / "c.pth")
    message = str(caught.value)
    assert "2 of the network's 14 tensors are missing (1.bias, 3.weight" in message
    assert "1 of the file's are left over (layer9.weight)" in message


def test_counters_and_auxiliary_heads_may_be_missing_or_left_over(
    net: nn.Module, tiny_nets: Any, tmp_path: Path
) -> None:
    tensors = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({**tensors, "AuxLogits.fc.weight": torch.ones(1)}, tmp_path / "c.pth")
    loaded = load_into(tiny_nets.batch(num_classes=4), tmp_path / "c.pth")
    assert (loaded.missing, loaded.left_over) == ((), ())


def test_a_checkpoint_of_another_architecture_is_named(tiny_nets: Any, tmp_path: Path) -> None:
    torch.save(nn.Sequential(OrderedDict(odd=nn.Linear(3, 4))).state_dict(), tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"no 9.weight in it, .*probably of another architecture"):
        infer_classes(tmp_path / "c.pth", tiny_nets.batch(), ["9"])
    torch.save(tiny_nets.group(num_classes=4).state_dict(), tmp_path / "d.pth")
    with pytest.raises(UserError, match=r"missing|another shape"):
        load_into(tiny_nets.batch(num_classes=4), tmp_path / "d.pth")
    torch.save(tiny_nets.batch(num_classes=9).state_dict(), tmp_path / "e.pth")
    with pytest.raises(UserError, match=r"the first is 9.weight: \[9, 32\] in the file, \[4, 32\]"):
        load_into(tiny_nets.batch(num_classes=4), tmp_path / "e.pth")


def test_a_network_is_unchanged_by_a_checkpoint_that_is_refused(
    net: nn.Module, tmp_path: Path
) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.save({k: v + 1 for k, v in list(before.items())[1:]}, tmp_path / "c.pth")
    with pytest.raises(UserError):
        load_into(net, tmp_path / "c.pth")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# The fit decides, whatever the names


SMALL = """
from torch import nn


class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stages = nn.Sequential(Block(3, 8), Block(8, 8))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.stages(x).mean((2, 3)))
"""


@pytest.fixture
def small() -> Any:
    """Makes a network with stages of blocks; its buffers are not those of a fresh one."""
    names: dict[str, Any] = {}
    exec(SMALL, names)

    def make(num_classes: int = 4) -> nn.Module:
        model: nn.Module = names["Small"](num_classes)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.normal_().abs_()
        return model

    return make


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}


def parameters_of(tensors: Tensors) -> Tensors:
    return {k: v for k, v in tensors.items() if "running" not in k and "batches" not in k}


def written(kind: str, sd: Tensors) -> Any:
    """A file as people have it; `sd` is what should be taken from it, not `old`."""
    old, one = changed(sd), torch.tensor(1)
    return {
        "a stage compiled": renamed(sd, "stages.0.", "stages.0._orig_mod."),
        "the trunk compiled": renamed(sd, "stages.", "stages._orig_mod."),
        "checkpointed stages": renamed(sd, "stages.1.", "stages.1._checkpoint_wrapped_module."),
        "FSDP outside and inside": {
            "model": prefixed("_fsdp_wrapped_module.", renamed(
                sd, "stages.1.", "stages.1._fsdp_wrapped_module._checkpoint_wrapped_module."))
        },
        "a wrapper of one's own": renamed(sd, "stages.1.", "stages.1.inner."),
        "two copies and counters": {
            **prefixed("online_model.", old), **prefixed("ema_model.", sd), "step": one,
            "initted": torch.tensor(True),
        },
        "averages deep inside": {
            "model": old, "ema": {"decay": 0.9, "updates": one, "shadow": dict(sd)},
        },
        "SWA": {"state_dict": old,
                "swa_state_dict": {"n_averaged": one, **prefixed("module.", sd)}},
        "teacher and student": {"student": prefixed("module.backbone.", old),
                                "teacher": prefixed("module.backbone.", sd)},
        "averaged parameters beside a state_dict": {
            "state_dict": {**old, **{k: v for k, v in sd.items() if k not in parameters_of(sd)}},
            "model_ema": parameters_of(sd),
        },
        "averaged parameters in their order": {
            "model": {**old, **{k: v for k, v in sd.items() if k not in parameters_of(sd)}},
            "ema": {"decay": 0.9, "shadow_params": list(parameters_of(sd).values())},
        },
        "two deep": {"net": {"state_dict": dict(sd), "arch": "small"}},
        "a list": [dict(sd), {"optimizer": {"state": {0: {"exp_avg": torch.ones(8)}}}}],
        "tensors nested by module": {
            "stages": {"0": {"conv.weight": sd["stages.0.conv.weight"]}},
            "rest": 3, **{k: v for k, v in sd.items() if k != "stages.0.conv.weight"},
        },
    }[kind]  # fmt: skip


FITS = {
    "a stage compiled": (None, ""), "the trunk compiled": (None, ""),
    "checkpointed stages": (None, ""),
    "FSDP outside and inside": ("model", "_fsdp_wrapped_module."),
    "a wrapper of one's own": (None, ""), "two copies and counters": (None, "ema_model."),
    "averages deep inside": ("ema.shadow", ""), "SWA": ("swa_state_dict", "module."),
    "teacher and student": ("teacher", "module.backbone."),
    "averaged parameters beside a state_dict": ("model_ema", ""),
    "averaged parameters in their order": ("ema.shadow_params", ""),
    "two deep": ("net.state_dict", ""), "a list": ("0", ""), "tensors nested by module": (None, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(FITS))
def test_the_part_that_fits_the_network_is_taken_wherever_it_stands(
    small: Any, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(0)
    source, fresh = small(), small()
    torch.save(written(kind, source.state_dict()), tmp_path / "c.pth")
    assert infer_classes(tmp_path / "c.pth", small(1237), ["fc"]) == 4
    loaded = load_into(fresh, tmp_path / "c.pth")
    assert (loaded.key, loaded.prefix) == FITS[kind]
    assert (loaded.missing, loaded.left_over) == ((), ())
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in fresh.state_dict().items())


def test_the_log_names_the_averages_that_were_taken_and_a_key_takes_others(
    small: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, fresh, file = small(), small(), tmp_path / "c.pth"
    torch.save(written("averages deep inside", source.state_dict()), file)
    with caplog.at_level(logging.WARNING, "vcompress"):
        load_into(fresh, file)
    assert "took ema.shadow, the averaged weights; model fits too" in caplog.text
    caplog.clear()
    assert load_into(fresh, file, key="model").key == "model"
    assert caplog.text == ""
    assert torch.equal(fresh.fc.weight, source.fc.weight + 1)
    with pytest.raises(UserError, match=r"no weights under the key 'modl'. Did you mean 'model'"):
        load_into(fresh, file, key="modl")
    with pytest.raises(UserError, match=r"no weights under the key 'ema.decay'"):
        load_into(fresh, file, key="ema.decay")


def test_averages_that_lack_parameters_are_not_taken_and_are_named(
    small: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, fresh, file = small(), small(), tmp_path / "c.pth"
    sd = source.state_dict()
    torch.save({"model": sd, "ema": {k: v for k, v in sd.items() if k != "fc.bias"}}, file)
    with caplog.at_level(logging.WARNING, "vcompress"):
        assert load_into(fresh, file).key == "model"
    assert "took model; the averaged weights ema have 7 of its 8 parameters" in caplog.text


def test_a_branch_beside_a_layer_is_no_wrapper(small: Any, tmp_path: Path) -> None:
    tensors = renamed(small().state_dict(), "fc.weight", "fc.base_layer.weight")
    tensors["fc.lora_A.weight"] = tensors["fc.lora_B.weight"] = torch.ones(4, 8)
    torch.save(tensors, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"missing \(fc.weight\)"):
        load_into(small(), tmp_path / "c.pth")


# What a file only claims


@pytest.mark.parametrize("classes", [10**12, 10**6 + 1])
def test_a_head_that_the_file_does_not_hold_is_refused(
    small: Any, tmp_path: Path, classes: int
) -> None:
    tensors = small().state_dict()
    tensors["fc.weight"] = torch.zeros(1, 8).as_strided((classes, 8), (0, 1))
    torch.save(tensors, tmp_path / "c.pth")
    assert (tmp_path / "c.pth").stat().st_size < 20_000
    with pytest.raises(UserError, match=rf"fc.weight claims the shape \[{classes}, 8\]"):
        infer_classes(tmp_path / "c.pth", small(), ["fc"])
    del tensors["fc.weight"]
    save_file({"fc.weight": torch.zeros(classes, 0)}, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=rf"fc.weight claims the shape \[{classes}, 0\]"):
        infer_classes(tmp_path / "c.safetensors", small(), ["fc"])


def test_a_head_of_another_width_is_named_before_a_network_is_built(
    small: Any, tmp_path: Path
) -> None:
    torch.save({"fc.weight": torch.ones(5, 2), "fc.bias": torch.ones(5)}, tmp_path / "c.pth")
    with pytest.raises(
        UserError, match=r"head fc.weight is \[5, 2\], and the network's is \[classes, 8\]"
    ):
        infer_classes(tmp_path / "c.pth", small(), ["fc"])


def test_a_name_of_many_parts_is_only_a_name(small: Any, tmp_path: Path) -> None:
    torch.save({**small().state_dict(), ".".join("a" * 9999): torch.ones(1)}, tmp_path / "c.pth")
    assert len(load_into(small(), tmp_path / "c.pth").left_over) == 1


def test_the_message_says_what_the_odd_tensor_points_to(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self, places: int, channels: int) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, places, 4))
            self.patch = nn.Conv2d(channels, 4, 2)

    torch.save(Tokens(9, 3).state_dict(), tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"\[1, 9, 4\] in the file.*--image-size"):
        load_into(Tokens(16, 3), tmp_path / "c.pth")
    torch.save(Tokens(9, 1).state_dict(), tmp_path / "d.pth")
    with pytest.raises(UserError, match=r"trained on images of 1 channels: give its --preprocess"):
        load_into(Tokens(9, 3), tmp_path / "d.pth")


def test_a_file_that_holds_itself_in_many_places_is_walked_once(small: Any, tmp_path: Path) -> None:
    content: dict[str, Any] = dict(small().state_dict())
    content |= {f"again{n}": content for n in range(20)}
    torch.save(content, tmp_path / "c.pth")
    assert load_into(small(), tmp_path / "c.pth").key is None
    torch.save({"fc.weight": torch.tensor(1.0)}, tmp_path / "d.pth")
    with pytest.raises(UserError, match=r"fc.weight claims the shape \[\]"):
        infer_classes(tmp_path / "d.pth", small(), ["fc"])
