"""Whether a bundle is whole and unchanged, and computes here what it computed where it was made.

`vcompress verify`, and `vcompress-verify` on a device that has only this package.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..bundle import GOLDEN, MODEL, Bundle, from_manifest, read_manifest, sha256, strangers
from ..bundle import manifest as manifests
from ..bundle.atomic import temporary_folder
from ..bundle.identity import ANY, Expected, Identity, identify
from ..bundle.manifest import MANIFEST, SEAL, SIGNATURE
from ..errors import UserError, reader_gone
from ..text import printable, shown
from .golden import Found, check, limit_db, precision_of

REFERENCE = "onnxruntime"
"""Wrote the golden outputs. It decides where no runtime was named and the one that the network was
quantised for is not here."""
_HASHERS = 4
_DEVICES = {"onnxruntime": ("cpu", "cuda"), "openvino": ("cpu",)}


class DoesNotVerify(UserError):
    """The bundle is not what it was, or does not compute what it did."""

    status = 1


@dataclass(frozen=True)
class Verification:
    """What was found. The bundle holds where `problems` is empty."""

    bundle: Bundle
    problems: tuple[str, ...]
    """Each names the file."""
    protected: bool
    """Whether `manifest.sha256` holds the manifest's own hash."""
    signature: str
    """What can be said of it."""
    golden: tuple[Found, ...]
    """One entry a runtime; empty where the golden run was left out."""
    identity: Identity

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    path: str | Path,
    *,
    key: Path | None = None,
    golden: bool = True,
    runtimes: Sequence[str] = (),
    timeout_s: float = 300.0,
    expected: Expected = ANY,
) -> Verification:
    """Check the bundle at `path`: its manifest, every file, the signature, the golden outputs.

    Args:
        path: the folder, or an archive of `vcompress pack`.
        key: file with the public key that the bundle must be signed with.
        golden: whether to run the golden inputs through the runtimes that are present.
        runtimes: those that must be present and agree. By default the runtime decides that the
            network was quantised for; where it is missing ONNX Runtime, which wrote the golden
            outputs; where that is missing too, every runtime that is present. Engines in the bundle
            decide where they can run. What the others find is told.
        timeout_s: for each runtime.
        expected: which bundle it must be.

    Raises:
        DoesNotVerify: the manifest cannot be believed.
        UserError: there is no bundle, or a runtime that is not known.
        EnvironmentLacks: a key without `cryptography`.
    """
    path = Path(path)
    if key is not None:
        from ..bundle import signature as signatures

        signatures.read_public(key)  # what is wrong with it does not speak against the bundle
    with _as_folder(path, key) as folder:
        bundle, content, protected = _open(folder)
        problems = _inconsistent(bundle)
        signature, wrong = _signature(folder, content, key)
        identity = identify(bundle, content)
        problems += wrong + expected.problems(identity) + _changed(bundle)
        problems += [f"{name}: not named by the manifest" for name in strangers(bundle)]
        found: tuple[Found, ...] = ()
        if golden and not problems:
            found = tuple(_golden(bundle, runtimes, timeout_s))
            problems += _judged(found, runtimes, bundle.ships_in)
    return Verification(bundle, tuple(problems), protected, signature, found, identity)


@contextmanager
def _as_folder(path: Path, key: Path | None) -> Iterator[Path]:
    if not path.is_file():
        yield path
        return
    from ..bundle.archive import unpack

    with temporary_folder() as folder:
        try:
            unpack(path, folder / path.stem, key)
        except UserError as error:
            raise DoesNotVerify(str(error)) from None
        yield folder / path.stem


def _open(folder: Path) -> tuple[Bundle, bytes, bool]:
    content, seal = read_manifest(folder)
    try:
        bundle = from_manifest(folder, content, seal)
        bundle.history  # noqa: B018  it is read, and so checked
    except UserError as error:
        raise DoesNotVerify(str(error)) from None
    return bundle, content, seal is not None


def _inconsistent(bundle: Bundle) -> list[str]:
    """What no single value of the manifest shows."""
    channels, *sides = bundle.input.shape
    if bundle.input.dtype in ("float32", "float16") and (
        channels != len(bundle.preprocess.mean) or tuple(sides) != tuple(bundle.preprocess.size)
    ):
        return [
            f"{MANIFEST}: the input is {list(bundle.input.shape)}, but preprocessing makes "
            f"[{len(bundle.preprocess.mean)}, {', '.join(map(str, bundle.preprocess.size))}]"
        ]
    return []


def _signature(folder: Path, manifest: bytes, key: Path | None) -> tuple[str, list[str]]:
    from ..bundle import signature as signatures

    try:
        content = manifests.read_beside(folder, SIGNATURE)
        found = None if content is None else signatures.parse(content, str(folder / SIGNATURE))
        if key is None:
            unchecked = found and f"by the key {found.signer}, not checked: give --key"
            return unchecked or "none", []
        return f"holds, by the key {signatures.check(found, manifest, key, str(folder))}", []
    except UserError as error:
        return "does not hold", [str(error)]


def _changed(bundle: Bundle) -> list[str]:
    """A line for each file that is not as the manifest says; several are hashed at once."""
    from concurrent.futures import ThreadPoolExecutor

    largest_first = sorted(bundle.files, key=lambda name: -bundle.files[name].bytes)
    with ThreadPoolExecutor(min(_HASHERS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: _differs(bundle, name), largest_first)
        return sorted(line for line in found if line)


def _differs(bundle: Bundle, name: str) -> str:
    entry = bundle.files[name]
    try:
        file = bundle.plain_file(name)
        size = file.stat().st_size
        if size != entry.bytes:
            return f"{name}: changed ({size:,} bytes, the manifest says {entry.bytes:,})"
        return "" if sha256(file) == entry.sha256 else f"{name}: changed (its SHA-256 differs)"
    except UserError:
        return f"{name}: missing, or not a plain file"
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror})"


def _golden(bundle: Bundle, runtimes: Sequence[str], timeout_s: float) -> Iterator[Found]:
    from ..runtimes import module
    from ..runtimes import names as known

    wanted = list(runtimes) or [name for name in known() if name in _DEVICES or name == "tensorrt"]
    for name in wanted:
        module(name)  # refuses one that is not known
    if MODEL not in bundle.files or GOLDEN not in bundle.files:
        return

    precisions: dict[str, str] = {}

    def run(runtime: str, device: str, file: str) -> Found:
        source, batch = (MODEL, None) if file == MODEL else _source(bundle, file)
        try:
            if source not in precisions:
                precisions[source] = precision_of(bundle.plain_file(source))
        except UserError as error:
            return Found(runtime, device, file, "fails", str(error))
        return check(
            bundle.plain_file(file), bundle.plain_file(GOLDEN), runtime=runtime, device=device,
            task=bundle.task, precision=precisions[source], batch=batch, timeout_s=timeout_s,
            sha256=bundle.files[file].sha256,
        )  # fmt: skip

    for name in wanted:
        if name != "tensorrt":
            yield from (run(name, device, MODEL) for device in _DEVICES.get(name, ("cpu",)))
            continue
        engines = [f for f in bundle.files if Path(f).suffix in module("tensorrt").SUFFIXES]
        if not engines:
            yield Found(name, "cuda", "", "absent", "no engine in the bundle")
        yield from (run(name, "cuda", engine) for engine in sorted(engines))


def _source(bundle: Bundle, engine: str) -> tuple[str, tuple[int, int] | None]:
    """The ONNX file that the engine was built from, and the batches that it takes: from the record
    beside it, where there is one."""
    import json

    beside = Path(engine).with_suffix(".json").as_posix()
    if beside not in bundle.files:
        return MODEL, None
    try:
        record = json.loads(bundle.plain_file(beside).read_bytes())
        least, _, largest = (int(size) for size in record["build"]["settings"]["batch"])
        known = record["onnx"] in bundle.files
        return (record["onnx"] if known else MODEL), (least, max(least, largest, 1))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return MODEL, None


def _judged(
    found: Sequence[Found], runtimes: Sequence[str], ships_in: str | None = None
) -> list[str]:
    present = [item for item in found if item.state != "absent"]
    problems = []
    for name in runtimes:
        if not any(item.runtime == name for item in present):
            said = "; ".join(item.message for item in found if item.runtime == name)
            problems.append(f"{name}: asked for, but absent ({said or 'no golden outputs'})")
    ran = {item.runtime for item in present if item.file == MODEL and item.device == "cpu"}
    decider = next((name for name in (ships_in, REFERENCE) if name in ran), None)
    for item in present:
        if item.state == "agrees":
            continue
        engine = item.file != MODEL
        decides = engine or decider in (None, item.runtime)
        if item.runtime in runtimes if runtimes else decides:
            problems.append(f"{item.file}: {_where(item)} {item.state}: {item.message}")
    return problems


def _where(item: Found) -> str:
    return " ".join(filter(None, (item.runtime, item.version, item.device)))


def lines(found: Verification, *, golden: bool = True) -> Iterator[str]:
    """What a person is told."""
    bundle, count = found.bundle, len(found.bundle.files)
    verdict = "hashes agree" if found.ok or found.golden else "does not hold"
    yield f"bundle     {_short(str(found.identity))}"
    yield f"files      {count}, {bundle.size_bytes:,} bytes: {verdict}"
    protected = f"held by {SEAL}" if found.protected else f"not protected: there is no {SEAL}"
    yield f"manifest   {protected}"
    yield f"signature  {found.signature}"
    if not golden:
        yield "golden     not run"
    elif not found.golden:
        held = GOLDEN in bundle.files and MODEL in bundle.files
        yield f"golden     {'not run' if held else f'the bundle has no {MODEL} and {GOLDEN}'}"
    for number, item in enumerate(found.golden):
        asked = ""
        if item.precision and item.state != "absent":
            asked = f" ({item.precision}, at least {limit_db(item.precision, item.device):g} dB)"
        file = f" {item.file}" if item.file not in ("", MODEL) else ""
        yield (
            f"{'' if number else 'golden':10} {_where(item)}{file} {item.state}: "
            f"{_short(item.message)}{asked}"
        )
    if found.golden and all(item.state == "absent" for item in found.golden):
        yield "           no runtime is present: what the model computes was not checked"


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 200 else text[:197] + "..."


def show(
    path: Path, *, key: Path | None, golden: bool, runtimes: Sequence[str], timeout_s: float,
    expected: Expected = ANY,
) -> None:  # fmt: skip
    """Verify and print.

    Raises:
        DoesNotVerify: with every problem, after the findings were printed.
    """
    found = verify(
        path, key=key, golden=golden, runtimes=runtimes, timeout_s=timeout_s, expected=expected
    )
    for line in lines(found, golden=golden):
        print(line)
    if not found.ok:
        problems = "\n  ".join(_short(problem) for problem in found.problems)
        raise DoesNotVerify(f"{path} does not verify:\n  {problems}")
    print(f"{_short(str(path))} verifies")


def main(argv: Sequence[str] | None = None) -> int:
    """`vcompress-verify`. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="vcompress-verify",
        description="Check a bundle: its manifest, every file, the signature, the golden outputs.",
        epilog="exit status: 0 it verifies, 1 it does not, 2 no bundle, 4 a package is missing",
    )
    parser.add_argument("bundle", type=Path, help="folder, or archive of vcompress pack")
    parser.add_argument("--key", type=Path, help="public key that it must be signed with")
    parser.add_argument("--expect", metavar="NAME",
                        help="the network's name, or the manifest's SHA-256")  # fmt: skip
    parser.add_argument("--not-before", metavar="DATE", help="earliest start of the last stage")
    parser.add_argument("--no-golden", dest="golden", action="store_false", help="hashes only")
    parser.add_argument("--runtime", dest="runtimes", nargs="*", default=(),
                        help="must be present and agree; default: onnxruntime decides")  # fmt: skip
    parser.add_argument("--timeout-s", type=float, default=300.0, help="for each runtime")
    asked = parser.parse_args(argv)
    try:
        show(
            asked.bundle, key=asked.key, golden=asked.golden, runtimes=asked.runtimes,
            timeout_s=asked.timeout_s, expected=Expected(asked.expect, asked.not_before),
        )  # fmt: skip
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_gone()
    except UserError as error:
        print(shown(f"verify: {error}"), file=sys.stderr)
        return error.status
    return 0
