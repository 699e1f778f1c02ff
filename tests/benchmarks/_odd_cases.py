"""Checkpoints, heads, sizes and files that trip tools up: what people's reports name besides the
form of a network.

Each case is a function of a folder that gives (right, what was seen); `odd_networks.py` runs them.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import json
import pathlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _odd_networks as nets
import numpy as np
import onnx
import torch
from _command import command
from PIL import Image
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.models.checkpoints import load_into
from vcompress.export.runtime import run_onnx

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
QUICK = ("--workers", "0", "--batch-size", "32")


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IMAGES)  # type: ignore[no-any-return]


def trained() -> nn.Module:
    """A network whose norms and weights are not those of a fresh one."""
    torch.manual_seed(1)
    made = nets.plain(10)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return made


def loaded(path: Path, model: nn.Module | None = None) -> Tensor:
    torch.manual_seed(2)
    fresh = nets.plain(10) if model is None else model
    load_into(fresh, path)
    return outputs(fresh)


def all_load(folder: Path, files: dict[str, Any], model: Callable[[], nn.Module]) -> list[str]:
    """The names of those that give other outputs than `trained()`, or none."""
    wanted, odd = outputs(trained()), []
    for name, content in files.items():
        torch.save(content, folder / "w.pth")
        try:
            found = loaded(folder / "w.pth", model())
            if float((found - wanted).abs().max()) > 1e-5:
                odd.append(name)
        except UserError as error:
            odd.append(f"{name}: {error}")
    return odd


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}


def wrappers(folder: Path) -> tuple[bool, str]:
    """Names that compilers, wrappers and trainers put around modules."""
    own = dict(trained().state_dict())
    files = {
        "compiled": {f"_orig_mod.{n}": t for n, t in own.items()},
        "a compiled layer": renamed(own, "second.", "second._orig_mod."),
        "Lightning, compiled": {"state_dict": {f"model._orig_mod.{n}": t for n, t in own.items()}},
        "checkpointed layer": renamed(own, "second.", "second._checkpoint_wrapped_module."),
        "FSDP": {"model": {f"_fsdp_wrapped_module.{n}": t for n, t in own.items()}},
        "two deep": {"net": {"state_dict": own}, "epoch": 3},
        "a list": [own, {"optimizer": 1}],
    }
    odd = all_load(folder, files, lambda: nets.plain(10))
    return not odd, f"{len(files) - len(odd)} of {len(files)} load" + "".join(f"; {o}" for o in odd)


def averages(folder: Path) -> tuple[bool, str]:
    """Averaged weights beside the raw ones: the averaged ones are taken."""
    own = dict(trained().state_dict())
    raw = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in own.items()}
    files: dict[str, Any] = {
        "ema_model": {
            **{f"online_model.{n}": t for n, t in raw.items()},
            **{f"ema_model.{n}": t for n, t in own.items()}, "step": torch.tensor(9),
        },
        "swa_state_dict": {
            "state_dict": raw,
            "swa_state_dict": {**{f"module.{n}": t for n, t in own.items()}, "n_averaged":
                               torch.tensor(3)},
        },
        "shadow": {"model": raw, "ema": {"decay": 0.999, "shadow": own}},
        "teacher": {"student": {f"module.backbone.{n}": t for n, t in raw.items()},
                    "teacher": {f"module.backbone.{n}": t for n, t in own.items()}},
    }  # fmt: skip
    odd = all_load(folder, files, lambda: nets.plain(10))
    return not odd, f"{len(files) - len(odd)} of {len(files)}" + "".join(f"; {o}" for o in odd)


class Mode(enum.Enum):
    ON = 1


def extras(folder: Path) -> tuple[bool, str]:
    """Objects beside the tensors that are no tensors."""
    own = dict(trained().state_dict())
    beside: dict[str, Any] = {
        "PosixPath": pathlib.PurePosixPath("/data"), "numpy": np.arange(3), "enum": Mode.ON,
        "datetime": datetime.datetime(2026, 1, 1), "partial": functools.partial(print, 1),
        "defaultdict": collections.defaultdict(list, a=[1]), "Namespace": argparse.Namespace(lr=1),
        "OrderedDict": OrderedDict(a=1), "set": {1}, "dtype": torch.float32,
        "random state": np.random.get_state(),
    }  # fmt: skip
    files = {name: {"state_dict": own, "extra": value} for name, value in beside.items()}
    odd = all_load(folder, files, lambda: nets.plain(10))
    return not odd, f"{len(files) - len(odd)} of {len(files)} load" + "".join(f"; {o}" for o in odd)


def norms_of_weights(folder: Path) -> tuple[bool, str]:
    """Weight norm and spectral norm by hooks, read into the same network, and weight norm into
    one that keeps the plain weight."""
    from torch.nn.utils import parametrizations as new

    said = []
    for old, made in ((nn.utils.weight_norm, new.weight_norm),
                      (nn.utils.spectral_norm, new.spectral_norm)):  # fmt: skip
        torch.manual_seed(1)
        source = nets.Small(10, second=old(nn.Conv2d(16, 32, 3, 2, 1)))
        torch.save(source.state_dict(), folder / "w.pth")
        wanted = outputs(source)
        targets = [nets.Small(10, second=made(nn.Conv2d(16, 32, 3, 2, 1)))]
        if old is nn.utils.weight_norm:
            targets.append(nets.Small(10))
        said += [float((loaded(folder / "w.pth", t) - wanted).abs().max()) for t in targets]
    return max(said) < 1e-5, f"largest difference {max(said):.0e}"


def other_files(folder: Path) -> tuple[bool, str]:
    """Files that are no checkpoints are named for what they are."""
    kinds = {
        b"": "an empty file", b"hello\n": "neither an archive nor a pickle",
        b"\x89HDF\r\n\x1a\n": "an HDF5 file", b"<!DOCTYPE html>": "a page of HTML",
        b"version https://git-lfs": "a pointer of Git LFS",
        b"\x08\x0a\x12\x07torch": "an ONNX file",
    }  # fmt: skip
    right = 0
    for content, said in kinds.items():
        (folder / "w.pth").write_bytes(content)
        try:
            loaded(folder / "w.pth")
        except UserError as error:
            right += said in str(error)
    return right == len(kinds), f"{right} of {len(kinds)} are named"


def transform_input(folder: Path) -> tuple[bool, str]:
    """GoogLeNet as the library hands it out with weights: its input is transformed."""
    import torchvision

    torch.manual_seed(3)
    model = torchvision.models.googlenet(
        weights=None, aux_logits=True, transform_input=True, init_weights=False, num_classes=10
    )
    torch.save(model.state_dict(), folder / "g.pth")
    status, said, _ = command(
        "import", "--model", "googlenet", "--weights", str(folder / "g.pth"), "--image-size", "64",
        "--out", str(folder / "g"),
    )  # fmt: skip
    if status != 0:
        return False, said.strip().splitlines()[-1]
    images = torch.nn.functional.interpolate(IMAGES, size=64)
    with torch.no_grad():
        wanted = model.eval()(images).numpy()
    got = run_onnx(folder / "g" / "model.onnx", images.numpy(), optimised=True)[0]
    apart = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    return apart < 1e-3, f"outputs differ by {apart:.0e} of the largest"


def frozen_backbone(folder: Path) -> tuple[bool, str]:
    """The head is registered first; all but it is frozen."""
    from safetensors.torch import load_file

    out = folder / "f"
    status, said, _ = command(
        "finetune", "--model", "_odd_networks:head_first", "--data", "digits", "--freeze",
        "backbone", "--epochs", "1", "--out", str(out), *QUICK, "--seed", "0",
    )  # fmt: skip
    if status != 0:
        return False, said.strip().splitlines()[-1]
    torch.manual_seed(0)
    start, end = nets.head_first(10).state_dict(), load_file(out / "weights.safetensors")
    moved = [
        n for n in start if n.endswith(("weight", "bias")) and not torch.equal(start[n], end[n])
    ]
    return moved == ["classifier.weight", "classifier.bias"], f"moved: {', '.join(moved)}"


def _folder_of_images(
    folder: Path, mode: str, classes: int = 2, size: tuple[int, int] = (48, 32)
) -> Path:
    rng = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"{mode}{classes}" / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        channels = len(mode) if mode != "L" else 1
        for number in range(20):
            pixels = rng.integers(0, 120, (size[1], size[0], channels)) + 120 * label
            image = Image.fromarray(pixels.astype(np.uint8).squeeze(), mode)
            image.save(place / f"{number}.png")
    return folder / f"{mode}{classes}"


def other_classes(folder: Path) -> tuple[bool, str]:
    """A head with a forward pass of its own, for other data than its bundle knows."""
    data = _folder_of_images(folder, "RGB")
    arguments = ("--epochs", "1", *QUICK)
    first = command("finetune", "--model", "_odd_networks:cosine_head", "--data", "digits",
                    "--out", str(folder / "a"), *arguments)  # fmt: skip
    second = command("finetune", "--model", str(folder / "a"), "--data", str(data), "--trust",
                     "_odd_networks:cosine_head", "--image-size", "32", "--out", str(folder / "b"),
                     *arguments)  # fmt: skip
    labels = [] if second[0] else json.loads((folder / "b/manifest.json").read_text())["labels"]
    right = first[0] == second[0] == 0 and len(labels) == 2
    return right, f"{len(labels)} classes" if right else second[1].strip().splitlines()[-1]


def same_graph(folder: Path) -> tuple[bool, str]:
    """The exported file does not show that a network was trained, and in which memory format."""
    found = []
    for epochs in ("0", "1"):
        out = folder / epochs
        command("finetune", "--model", "_odd_networks:viewed", "--data", "digits", "--epochs",
                epochs, "--out", str(out), *QUICK)  # fmt: skip
        graph = onnx.load(str(out / "model.onnx")).graph
        found.append([node.op_type for node in graph.node])
    counts = Counter(found[1])
    return found[0] == found[1], ", ".join(f"{n} {name}" for name, n in counts.items())


def opsets(folder: Path) -> tuple[bool, str]:
    """`--opset` writes what was asked, or says which sets hold the network."""
    out = folder / "o"
    command("finetune", "--model", "_odd_networks:plain", "--data", "digits", "--epochs", "0",
            "--out", str(out), *QUICK)  # fmt: skip
    written, refused = [], []
    for opset in ("9", "13", "17", "20", "23"):
        file = folder / f"{opset}.onnx"
        status, said, _ = command("export", str(out), "--trust", "_odd_networks:plain", "--opset",
                                  opset, "--out", str(file))  # fmt: skip
        if status == 0:
            written.append((opset, str(onnx.load(str(file)).opset_import[0].version)))
        else:
            refused.append((opset, "opset" in said))
    right = all(a == b for a, b in written) and all(ok for _, ok in refused) and len(written) > 3
    return right, f"written {', '.join(a for a, _ in written)}" + (
        f"; refused {', '.join(a for a, _ in refused)}" if refused else ""
    )


def channels(folder: Path) -> tuple[bool, str]:
    """Grey, colour and alpha for a network of three channels, whose first layer is adapted; and a
    size that is not square."""
    cases = {
        "L": ("grey", '{"size": [32, 32], "mean": [0.3], "std": [0.3], "channels": "L"}'),
        "RGBA": ("RGBA", json.dumps({"size": [32, 32], "mean": [0.5] * 4, "std": [0.5] * 4,
                                     "channels": "RGBA"})),
        "RGB": ("32 x 64", json.dumps({"size": [32, 64], "mean": [0.5] * 3, "std": [0.5] * 3})),
    }  # fmt: skip
    said, right = [], True
    for mode, (what, preprocess) in cases.items():
        out = folder / f"c{mode}"
        status, text, _ = command(
            "finetune", "--model", "mnv3s", "--data", str(_folder_of_images(folder, mode)),
            "--preprocess", preprocess, "--epochs", "0", "--out", str(out), *QUICK,
        )  # fmt: skip
        shape = (
            json.loads((out / "manifest.json").read_text())["input"]["shape"] if not status else []
        )
        right &= status == 0 and shape == [len(mode), *json.loads(preprocess)["size"]]
        said.append(f"{what} {shape}" if not status else text.strip().splitlines()[-1][:120])
    return right, "; ".join(said)


CASES: dict[str, Callable[[Path], tuple[bool, str]]] = {
    "names of wrappers": wrappers,
    "averaged weights": averages,
    "objects beside tensors": extras,
    "norms of weights": norms_of_weights,
    "no checkpoints": other_files,
    "GoogLeNet's own input": transform_input,
    "head first, frozen rest": frozen_backbone,
    "own head, other classes": other_classes,
    "graph after training": same_graph,
    "opsets": opsets,
    "channels and sizes": channels,
}
