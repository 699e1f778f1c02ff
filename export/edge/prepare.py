"""Prepares a build: verifies the bundle and writes the files that the compiler needs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vcompress.bench.bundle import MODEL
from vcompress.bench.bundle.manifest import BESIDE
from vcompress.bench.bundle.output import check_output, written
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import load
from vcompress.bench.verify.check import verify

from .header import check_name, data_source, header, scores_of


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
    check_output(out / f"{name}.onnx", [path])
    bundle = found.bundle
    scores_of(bundle)
    if MODEL not in bundle.files:
        raise UserError(f"{path}: the bundle has no {MODEL}. Export it: vcompress export {path}.")
    if bundle.input.dtype != "float32":
        raise UserError(f"{path}: its input is {bundle.input.dtype}; a device build feeds float32.")
    out.mkdir(parents=True, exist_ok=True)
    model = bundle.plain_file(MODEL).read_bytes()
    if hashlib.sha256(model).hexdigest() != bundle.files[MODEL].sha256:
        raise UserError(f"{bundle.path / MODEL} changed after it was verified; try again.")
    _check_outputs(path, model, len(bundle.labels), maps=load(bundle.task).maps)
    _write(out / f"{name}.onnx", model)
    _write(out / f"vcompress_{name}.h", header(bundle, name, embedded=embed).encode("ascii"))
    if embed:
        _write(out / f"{name}_data.c", data_source(name).encode("ascii"))
    folder = bundle.path.resolve()
    about = [file for file in BESIDE if (folder / file).is_file()]
    return tuple(folder / file for file in (*about, *sorted(bundle.files)))


def _check_outputs(path: Path, model: bytes, labels: int, *, maps: bool) -> None:
    """Raise a UserError where a model does not give one number for each label, or with `maps` a map
    for each or one of their numbers."""
    import onnx

    outputs = onnx.load_model_from_string(model).graph.output
    shapes = [[d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in outputs]
    wanted = f"[batch, {labels}], a number for each label"
    if maps:
        wanted = f"[batch, {labels}, height, width], or the classes [batch, height, width]"
    found = shapes[0] if len(shapes) == 1 else []
    each = len(found) in ((4,) if maps else (2,)) and found[1] in (labels, "")
    if not (each or (maps and len(found) == 3)):
        raise UserError(
            f"{path}: its {MODEL} gives {', '.join(map(str, shapes))}; a device build takes one "
            f"output {wanted}."
        )


def _write(target: Path, content: bytes) -> None:
    same_size = target.is_file() and target.stat().st_size == len(content)
    if same_size and target.read_bytes() == content:
        return
    with written(target) as stream:
        stream.write(content)
