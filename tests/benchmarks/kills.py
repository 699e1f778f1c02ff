"""SIGKILL at random moments of every command that writes: what is there afterwards?

    python tests/benchmarks/kills.py [--kills 200] [--seed 0]

A working folder with bundles, and files of the user's own in and beside them, is made once. Each
command runs whole once, which gives its duration; then it is killed at a moment drawn from all of
it, again and again in turn. After each kill every file of the user's own must have its bytes, every
bundle must verify, and every other output must be the old one or a whole new one. What a killed
command leaves must be hidden and ours, and gone after the next whole run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx  # noqa: F401  imported once, before the processes are forked
import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch  # noqa: F401
from PIL import Image

from vcompress.bench import cli as vbench
from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.archive import is_archive
from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.bench.errors import UserError
from vcompress.bench.verify.check import verify
from vcompress.compress import cli

NETS = """
from torch import nn


def batch(num_classes: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, num_classes),
    )
"""
RECIPE = """
out = "runs/all"
[options]
data = "images"
image_size = 16
[[stages]]
stage = "finetune"
model = "runs/net"
epochs = 1
[[stages]]
stage = "quantize"
"""
TRUST = ("--trust", "tiny_nets:batch")
SHORT = ("--epochs", "1", "--batch-size", "16")
TRAINED = ("--data", "images", "--image-size", "16", *SHORT)
COMMANDS: dict[str, tuple[str, ...]] = {
    "finetune": ("finetune", "--model", "tiny_nets:batch", *TRAINED, "--out", "runs/tuned",
                 "--overwrite"),
    "distill": ("distill", "--teacher", "runs/net", "--student", "runs/small", *SHORT, *TRUST,
                "--out", "runs/distilled", "--overwrite"),
    "prune": ("prune", "--model", "runs/net", "--macs", "0.6", *SHORT, *TRUST, "--out",
              "runs/pruned", "--overwrite"),
    "sparsify": ("sparsify", "--model", "runs/net", *SHORT, *TRUST, "--out", "runs/sparse",
                 "--overwrite"),
    "quantize": ("quantize", "--model", "runs/net", *TRUST, "--out", "runs/int8", "--overwrite"),
    "cast": ("cast", "--model", "runs/net", *TRUST, "--out", "runs/half", "--overwrite"),
    "import": ("import", "--model", "tiny_nets:batch", "--weights", "w.safetensors", "--data",
               "images", "--image-size", "16", "--out", "runs/imported", "--overwrite"),
    "run": ("run", "all.toml", *TRUST, "--overwrite"),
    "export": ("export", "runs/net", *TRUST),
    "export --out": ("export", "runs/net", *TRUST, "--out", "net.onnx"),
    "export --to triton": ("export", "runs/net", *TRUST, "--to", "triton", "--out", "served"),
    "robustness": ("robustness", "runs/net", "--images", "6", "--attack-steps", "1", *TRUST,
                   "--json", "robust.json"),
    "sensitivity": ("sensitivity", "runs/net", *TRUST, "--out", "layers.json"),
    "lr-find": ("lr-find", "--model", "runs/net", "--steps", "10", *TRUST, "--out", "rate.svg"),
    "pack": ("pack", "runs/packed", "-o", "net.vcb"),
    "unpack": ("unpack", "kept.vcb", "-o", "runs/unpacked", "--overwrite"),
    "keygen": ("keygen", "key.pem"),
    "sbom": ("sbom", "runs/net", "-o", "net.cdx.json"),
    "lint": ("lint", "runs/net", "--json", "lint.json"),
    "vbench": ("vbench", "runs/net", "--seconds", "0.2", "--json", "bench.json", "--html",
               "bench.html", "--markdown", "bench.md", "--junit", "bench.xml"),
}  # fmt: skip
OWN = {"notes.txt": "mine", "paper/draft.tex": "mine too", "x.py": "print()", ".hidden": "h"}


def started(command: tuple[str, ...]) -> int:
    """The command in a process that is forked from this one, where torch is imported and no thread
    was started."""
    if command[0] == "keygen":  # it replaces nothing
        for file in ("key.pem", "key.pub.pem"):
            Path(file).unlink(missing_ok=True)
    if "triton" in command:  # nor does this
        shutil.rmtree("served", ignore_errors=True)
    child = os.fork()
    if child:
        return child
    try:
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        main = vbench.main if command[0] == "vbench" else cli.main
        status = main(command[1:] if command[0] == "vbench" else command)
        sys.stdout.flush()
        os._exit(status)
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    finally:
        os._exit(70)


def whole(command: tuple[str, ...]) -> float:
    """Runs it to its end; the seconds that it took."""
    begin = time.monotonic()
    _, status = os.waitpid(started(command), 0)
    assert status == 0, (command, Path("said.txt").read_text()[-2000:])
    return time.monotonic() - begin


def make() -> tuple[dict[Path, bytes], dict[str, float]]:
    """Fills the working folder; gives the user's own files, with what is in them, and how many
    seconds each command took."""
    Path("tiny_nets.py").write_text(NETS)
    Path("all.toml").write_text(RECIPE)
    rng = np.random.default_rng(0)
    for kind, label in enumerate(("red", "green", "blue")):
        folder = Path("images") / label
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 120, (16, 16, 3))
            pixels[..., kind] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
    for out in ("net", "small", "packed"):
        whole(("finetune", "--model", "tiny_nets:batch", *TRAINED, "--out", f"runs/{out}"))
    whole(COMMANDS["pack"])
    Path("net.vcb").rename("kept.vcb")
    Path("w.safetensors").write_bytes(Path("runs/net/weights.safetensors").read_bytes())
    seconds = {}
    for name, command in COMMANDS.items():
        seconds[name] = whole(command)
        print(f"{name}: {seconds[name]:.1f} s", file=sys.stderr)
    own: dict[Path, bytes] = {}
    for bundle in bundles():
        if bundle.name == "packed":  # pack refuses a bundle with other files
            continue
        for file, text in OWN.items():
            path = bundle / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            own[path] = text.encode()
        # What looks as a folder of ours and carries no mark.
        like = bundle.with_name(f".{bundle.name}.previous")
        like.mkdir()
        (like / "mine.txt").write_text("mine")
        own[like / "mine.txt"] = b"mine"
    for path in (Path("tiny_nets.py"), Path("all.toml"), Path("w.safetensors"), Path("kept.vcb")):
        own[path] = path.read_bytes()
    return own, seconds


def bundles() -> Iterator[Path]:
    """Every bundle below runs/."""
    for manifest in sorted(Path("runs").rglob("manifest.json")):
        if not any(part.startswith(".") for part in manifest.parts):
            yield manifest.parent


def faults(own: dict[Path, bytes], there: set[Path]) -> list[str]:
    """What is wrong in the working folder."""
    found = []
    gone = there - set(bundles())
    for bundle in gone:  # a reader puts back what a kill took between two renames
        try:
            Bundle.open(bundle)
        except UserError as error:
            found.append(f"{bundle} is gone: {error}")
    for bundle in bundles():
        try:
            checked = verify(bundle, golden=False)
        except UserError as error:
            found.append(f"{bundle}: {error}")
            continue
        strangers = {f"{file}: not named by the manifest" for file in OWN}
        found += [f"{bundle}: {line}" for line in checked.problems if line not in strangers]
    for path, content in own.items():
        if not path.is_file() or path.read_bytes() != content:
            found.append(f"{path}: lost or changed")
    for path in (*Path().glob("*.json"), Path("layers.json")):
        try:
            json.loads(path.read_text())
        except (OSError, ValueError) as error:
            found.append(f"{path}: {error}")
    ends = {"bench.html": "</html>", "bench.xml": "</testsuites>", "rate.svg": "</svg>"}
    for name, end in ends.items():
        if not Path(name).read_text().rstrip().endswith(end):
            found.append(f"{name}: cut off")
    if not is_archive(Path("net.vcb")):
        found.append("net.vcb: cut off")
    if Path("key.pub.pem").exists() and not Path("key.pem").exists():
        found.append("key.pub.pem: a public key alone")
    return found


def left() -> list[Path]:
    """Hidden files and folders that commands made."""
    folders = (Path(), Path("runs"), Path("runs/all"))
    hidden = [path for folder in folders for path in folder.glob(".*")]
    return [path for path in hidden if path.suffix != ".previous"]


@contextmanager
def working_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="kills.") as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        os.environ["XDG_STATE_HOME"] = f"{folder}/state"
        yield
        os.chdir(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from vcompress.compress.pipeline import measure

    measure.LATENCY_SECONDS = 0.2
    logging.disable(logging.WARNING)
    rng = random.Random(asked.seed)
    hit: Counter[str] = Counter()
    writing: Counter[str] = Counter()
    bad: dict[str, list[str]] = {}
    with working_folder():
        print("making the bundles", file=sys.stderr)
        own, seconds = make()
        there = set(bundles())
        assert not faults(own, there), faults(own, there)
        names = list(COMMANDS)
        for number in range(asked.kills):
            name = names[number % len(names)]
            before = {path for path in left() if path.suffix != ".lock"}
            child = started(COMMANDS[name])
            time.sleep(rng.uniform(0, seconds[name]))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            hit[name] += os.WIFSIGNALED(status)
            writing[name] += any(p.suffix != ".lock" and p not in before for p in left())
            for line in faults(own, there):
                bad.setdefault(name, []).append(line)
                print(f"kill {number}, {name}: {line}", file=sys.stderr)
        for name in names:
            whole(COMMANDS[name])
        with temporary_folder():  # sweeps the temporary folders of what was killed
            pass
        swept = [str(path) for path in left() if path.suffix != ".lock"]
        if swept:
            bad.setdefault("left after whole runs", []).extend(swept)
        final = faults(own, there)
        if final:
            bad.setdefault("after whole runs", []).extend(final)
    print("| command | seconds | kills while it ran | that left a hidden folder | faults |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in names:
        print(f"| {name} | {seconds[name]:.1f} | {hit[name]} | {writing[name]} | "
              f"{len(bad.get(name, []))} |")  # fmt: skip
    faulty = sum(map(len, bad.values()))
    print(f"| all | | {sum(hit.values())} | {sum(writing.values())} | {faulty} |")
    for name, lines in bad.items():
        print(f"{name}: {lines[:5]}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
