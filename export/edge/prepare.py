"""Before an application is compiled: verify the bundle, and write what the compiler needs."""

from __future__ import annotations

import os
from pathlib import Path

from vcompress.bench.bundle import Bundle, sha256
from vcompress.bench.errors import UserError
from vcompress.bench.manifest import MANIFEST, SEAL, SIGNATURE
from vcompress.bench.verify import verify

from .header import check_name, data_source, header

MODEL = "model.onnx"


def prepare(
    path: Path, name: str, out: Path, *, embed: bool, key: Path | None = None
) -> tuple[Path, ...]:
    """Write `vcompress_NAME.h`, `NAME.onnx` and, to embed it, `NAME_data.c` into `out`.

    A file that would not change keeps its time, so that nothing is compiled again for it.

    Args:
        key: file with the public key that the bundle must be signed with.

    Returns:
        The files that the result was made from: the build is configured again when one changes.

    Raises:
        UserError: no bundle, a changed file, or a task, name or label that does not fit.
    """
    check_name(name)
    if path.is_file():
        raise UserError(f"{path}: this is a file; unpack it first: vcompress unpack {path}.")
    found = verify(path, key=key, golden=False)
    if not found.ok:
        raise UserError(f"{path} does not verify: {'; '.join(found.problems[:5])}.")
    bundle = found.bundle
    if bundle.task != "classification":
        raise UserError(
            f"{path}: its task is {bundle.task!r}; a device build knows classification."
        )
    if MODEL not in bundle.files:
        raise UserError(f"{path}: the bundle has no {MODEL}. Export it: vcompress export {path}.")
    if bundle.input.dtype != "float32":
        raise UserError(f"{path}: its input is {bundle.input.dtype}; a device build feeds float32.")
    out.mkdir(parents=True, exist_ok=True)
    _copy(bundle, out / f"{name}.onnx")
    _write(out / f"vcompress_{name}.h", header(bundle, name, embedded=embed))
    if embed:
        _write(out / f"{name}_data.c", data_source(name))
    folder = bundle.path.resolve()
    about = [name for name in (MANIFEST, SEAL, SIGNATURE) if (folder / name).is_file()]
    return tuple(folder / name for name in (*about, *sorted(bundle.files)))


def _copy(bundle: Bundle, target: Path) -> None:
    expected = bundle.files[MODEL].sha256
    if target.is_file() and sha256(target) == expected:
        return
    _write(target, bundle.file(MODEL).read_bytes())
    if sha256(target) != expected:
        target.unlink()
        raise UserError(f"{bundle.path / MODEL} changed while it was copied; try again.")


def _write(target: Path, content: str | bytes) -> None:
    data = content.encode("ascii") if isinstance(content, str) else content
    if target.is_file() and target.stat().st_size == len(data) and target.read_bytes() == data:
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
