"""The bundle's golden inputs through a runtime, against the outputs that it recorded.

Each runtime has a fresh process (`python -m vcompress.bench.verify.golden`): a file that crashes a
runtime or never ends does so there.

The limit depends on the precision of the file. It is a signal-to-error ratio over all golden
outputs; the best class of each image is compared as well:

- float32: runtimes add in another order; 115 to 140 dB were measured between ONNX Runtime with and
  without its optimisations and OpenVINO. 80 dB is asked. A GPU multiplies float32 in TF32 (10 bits
  of mantissa, as float16): 50 dB is asked there.
- float16 (10 bits of mantissa) 40 dB, bfloat16 (7 bits) 30 dB.
- int8: where two runtimes round a value to two neighbouring steps, the step is the error, and it
  goes on through the layers: 36 to 62 dB were measured within one runtime. 20 dB is asked, an error
  of a tenth of the signal. A file below that computes another network: uint8 by int8 products that
  saturate on a CPU without VNNI gave 4 dB and half of the classes.

Another best class counts only where the recorded margin between the two classes is larger than what
an error at the limit explains: `3 sqrt(2)` times its root mean square.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..apart import ask, serve
from ..errors import EnvironmentLacks, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

LIMITS_DB = {"float32": 80.0, "tf32": 50.0, "float16": 40.0, "bfloat16": 30.0, "int8": 20.0}
LEAST_EQUAL = 0.75
"""Share of an integer output, such as the indices of the best classes, that must be equal."""


@dataclass(frozen=True)
class Found:
    """What one runtime made of the golden inputs."""

    runtime: str
    device: str
    file: str
    """File of the bundle: model.onnx, or an engine."""
    state: Literal["agrees", "differs", "fails", "absent"]
    message: str
    version: str = ""
    precision: str = ""
    sqnr_db: float | None = None
    """Over all float outputs; None where they are equal or were not computed."""
    top1_agreement: float | None = None
    max_abs: float | None = None


def check(
    model: Path, golden: Path, *, runtime: str, device: str, task: str, precision: str,
    batch: tuple[int, int] | None = None, timeout_s: float = 300.0, sha256: str | None = None,
) -> Found:  # fmt: skip
    """Run the golden inputs of the file `golden` through `model` in a fresh process.

    `batch` is the least and the largest that an engine takes; None takes all inputs at once.
    `sha256` is what the file must have when it is opened.
    A runtime, device or package that is missing gives the state "absent"; a model that the runtime
    does not open or run, or a process that crashes or does not end, gives "fails".
    """
    request = {
        "path": str(model), "golden": str(golden), "runtime": runtime, "device": device,
        "task": task, "precision": precision, "batch": batch,
        "sha256": sha256,
    }  # fmt: skip

    def failed(message: str, state: Literal["fails", "absent"] = "fails") -> Found:
        return Found(runtime, device, model.name, state, message, precision=precision)

    from ..runtimes.cuda import has_driver

    if device == "cuda" and not has_driver():
        return failed("no NVIDIA driver here", "absent")
    reply = ask("vcompress.bench.verify.golden", request, timeout_s)
    answer = reply.answer
    if reply.status is None:
        return failed(f"did not come back within {timeout_s:g} s")
    if reply.status != 0 or not answer:
        return failed(f"{reply.end} on this file")
    if "error" in answer:
        absent = answer["status"] == EnvironmentLacks.status
        return failed(answer["error"].removeprefix(f"{model}: "), "absent" if absent else "fails")
    return Found(runtime, device, model.name, precision=precision, **answer)


def limit_db(precision: str, device: str) -> float:
    """The least signal-to-error ratio, in dB, of a file of this precision."""
    return LIMITS_DB["tf32" if precision == "float32" and device != "cpu" else precision]


def precision_of(model: Path) -> str:
    """float32, float16, bfloat16 or int8 (anything quantised), from what the ONNX file holds."""
    from .. import onnx_file

    facts = onnx_file.read(model)
    quantised = ("QuantizeLinear", "DequantizeLinear", "QLinear", "ConvInteger", "MatMulInteger")
    if any(name.rpartition(".")[2].startswith(quantised) for name in facts.operators):
        return "int8"
    return next((kind for kind in ("bfloat16", "float16") if kind in facts.weight_bytes), "float32")


def compare(
    reference: Arrays, other: Arrays, *, limit: float, task: str
) -> dict[str, str | float | None]:
    """`state`, `message` and numbers for two sets of outputs by name.

    Args:
        reference: recorded arrays `[N, ...]`.
        other: what a runtime computed, of the same names and shapes.
        limit: least signal-to-error ratio, dB.
        task: says what the outputs decide, which is compared too; one that is not known here
            decides nothing.
    """
    import numpy as np

    from ..tasks import TABLE
    from ..tasks import load as load_task

    judge = load_task(task) if task in TABLE else None

    signal = error = worst = 0.0
    agreements: list[float] = []
    what = ""
    wrong: list[str] = []
    for name, wanted in reference.items():
        found = other[name]
        if wanted.shape != found.shape:
            wrong.append(f"{name} is {list(found.shape)}, recorded was {list(wanted.shape)}")
            continue
        if wanted.dtype.kind != "f":
            share = float((wanted == found).mean())
            if share < LEAST_EQUAL:
                wrong.append(f"only {share:.0%} of {name} is as recorded")
            continue
        a, b = wanted.astype(np.float64), found.astype(np.float64)
        if not np.isfinite(b).all():
            wrong.append(f"{name} is not finite")
            continue
        signal, error = signal + float(np.square(a).sum()), error + float(np.square(a - b).sum())
        worst = max(worst, float(np.abs(a - b).max(initial=0.0)))
        decided = judge.agreement(a, b, limit) if judge is not None else None
        if decided is not None:
            agreements.append(decided.share)
            what = decided.what
            if decided.beyond:
                wrong.append(f"another {what} in {decided.beyond} place(s) that were clear")
    sqnr = None if error == 0 else _decibels(signal, error)
    if sqnr is not None and not sqnr >= limit:  # NaN, of a recorded infinity, agrees with nothing
        wrong.insert(0, f"{sqnr:.1f} dB; at least {limit:g} dB is expected")
    top1 = min(agreements) if agreements else None
    summary = "equal to the bit" if error == 0 else f"{sqnr:.1f} dB"
    if top1 is not None and error != 0:
        summary += f", {what} equal in {top1:.0%}"
    return {
        "state": "differs" if wrong else "agrees",
        "message": "; ".join(wrong) if wrong else summary,
        "sqnr_db": sqnr, "top1_agreement": top1, "max_abs": worst,
    }  # fmt: skip


def _decibels(signal: float, error: float) -> float:
    from math import log10

    return 10 * log10(signal / error) if signal > 0 else float("-inf")


def load(file: Path) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """The golden inputs `[N, ...]` and the outputs by name.

    Raises:
        UserError: the file is not as vcompress writes it. All entries together are no larger than
            the file, so one that several names share is refused before it is read.
    """
    import zipfile

    import numpy as np

    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            items = archive.infolist()
            for item in items:
                if item.compress_type != zipfile.ZIP_STORED or item.file_size > size:
                    raise UserError(
                        f"{file}: {item.filename} is compressed; golden arrays are not."
                    )
            if sum(item.file_size for item in items) > size:
                raise UserError(
                    f"{file}: its {len(items)} entries overlap: together they are larger than the "
                    "file. Golden arrays stand one after the other."
                )
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        if not all(isinstance(array, np.ndarray) and array.ndim for array in found.values()):
            raise ValueError("an entry is no array of several")
        inputs = found.pop("input")
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds on a damaged file
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not golden arrays as vcompress writes them ({text}).") from None
    outputs = {
        name.removeprefix("output."): array
        for name, array in found.items()
        if name.startswith("output.")
    }
    if not outputs or any(array.shape[:1] != inputs.shape[:1] for array in outputs.values()):
        raise UserError(f"{file}: no golden outputs for {list(inputs.shape)} inputs.")
    return inputs, outputs


def _work(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from .. import runtimes

    inputs, reference = load(Path(request["golden"]))
    with runtimes.open_session(
        request["path"], runtime=request["runtime"], device=request["device"], **_held(request)
    ) as session:
        spec = session.inputs[0]
        images = inputs.astype(spec.dtype)
        least, largest = request["batch"] or (1, len(images))
        size = spec.images_in_call(max(least, min(len(images), largest)))
        parts = [session.run({spec.name: batch}) for batch in _batches(images, size)]
        names = [output.name for output in session.outputs]
        if set(reference) != set(names) and len(reference) == len(names):
            pairs = dict(zip(reference, names, strict=True))  # a runtime that renames outputs
        else:
            pairs = {name: name for name in reference}
        if missing := set(pairs.values()) - set(names):
            raise UserError(f"it has no output {', '.join(sorted(missing))}")
        other = {
            ours: np.concatenate([part[theirs] for part in parts])[: len(images)]
            for ours, theirs in pairs.items()
        }
        version = session.facts.version
    limit = limit_db(request["precision"], request["device"])
    return {"version": version, **compare(reference, other, limit=limit, task=request["task"])}


def _held(request: Mapping[str, Any]) -> dict[str, Any]:
    """The bytes of the model, once they are those that were hashed. One whose weights lie in a file
    of their own is opened by its name."""
    from .. import onnx_file

    path = Path(request["path"])
    content = path.read_bytes()
    if request["sha256"] not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError("changed since it was hashed")
    if onnx_file.is_onnx(path) and onnx_file.read(path, content).external:
        return {}
    return {"content": content}


def _batches(images: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    """Batches of exactly `size`; the last one is filled up with the first images."""
    import numpy as np

    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield np.concatenate([part, np.resize(images, (size - len(part), *images.shape[1:]))])


if __name__ == "__main__":
    sys.exit(serve(_work))
