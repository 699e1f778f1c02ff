"""Checkpoints that people have, and files that are not what they seem."""

from __future__ import annotations

import argparse
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.models.checkpoints import (
    infer_classes,
    load_into,
    read_checkpoint,
    strip_prefix,
)

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


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    net: nn.Module, tmp_path: Path, legacy: bool
) -> None:
    target = tmp_path / "ran"
    content = {"state_dict": net.state_dict(), "extra": Evil(target)}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="refused by torch's restricted loader") as caught:
        read_checkpoint(tmp_path / "c.pth")
    assert "torch.save(model.state_dict()" in str(caught.value)
    assert "system" in str(caught.value)
    assert not target.exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "plain.pth")
    assert not target.exists()


def test_a_whole_pickled_module_is_refused(net: nn.Module, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "c.pth")
    with pytest.raises(UserError, match="save the weights alone"):
        read_checkpoint(tmp_path / "c.pth")


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.pth")
    for name, content in (
        ("empty.pth", b""), ("text.pth", b"hello world\n"), ("zip.pth", b"PK\x03\x04" + b"\0" * 90),
        ("empty.safetensors", b""), ("text.safetensors", b"hello world, no tensors"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_checkpoint(tmp_path / name)
        assert name in str(caught.value)
    for content in ([1, 2], 5, {"epoch": 3}, {"state_dict": {}}, torch.ones(2)):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match=r"odd\.pth: (holds a|no weights found)"):
            read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_read_or_named_and_nothing_else(tmp_path: Path, legacy: bool) -> None:
    torch.save(
        {"model": {"fc.weight": torch.ones(3, 4)}, "args": argparse.Namespace(lr=1)},
        tmp_path / "whole.pth", _use_new_zipfile_serialization=not legacy,
    )  # fmt: skip
    content = (tmp_path / "whole.pth").read_bytes()
    rng, refused, file = random.Random(0), 0, tmp_path / "damaged.pth"
    for n in range(150):
        damaged = bytearray(content[: rng.randrange(1, len(content))] if n % 3 == 0 else content)
        for _ in range(4):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            read_checkpoint(file)
        except UserError as error:
            assert "damaged.pth" in str(error)
            refused += 1
    assert refused > 50


def test_the_shortest_prefix_that_fits_best_is_taken_off() -> None:
    names = {"conv.weight", "fc.weight"}
    tensors = {f"module.{n}": torch.ones(1) for n in names} | {"loss.weight": torch.ones(1)}
    found, prefix = strip_prefix(tensors, names)
    assert prefix == "module."
    assert set(found) == names | {"loss.weight"}
    model = {"model.0.weight": torch.ones(1)}
    assert strip_prefix(model, {"model.0.weight"})[1] == ""


def test_numpys_numbers_beside_the_weights_are_read(tmp_path: Path) -> None:
    import numpy as np

    content = {"state_dict": {"w": torch.ones(2)}, "best": np.float64(0.5), "epoch": np.int64(3)}
    torch.save(content, tmp_path / "numbers.pth")
    tensors, key = read_checkpoint(tmp_path / "numbers.pth")
    assert key == "state_dict"
    assert tensors["w"].tolist() == [1.0, 1.0]
