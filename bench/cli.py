"""The command vbench. It imports nothing heavy, so that its help is there at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError
from .options import Options

EXAMPLES = """\
examples:
  vbench model.onnx                        latency, memory, size; in a bundle accuracy as well
  vbench a.onnx b.onnx --data digits       B against A, interleaved, with a verdict
  vbench model.onnx --threads 1 --json result.json
  vbench model.onnx --shape images=1x3x640x640
  vbench model.onnx --baseline result.json --gate gate.toml --junit report.xml
  vbench selftest                          is this machine quiet enough to measure on?

exit status: 0 it holds, 1 a gate failed, 2 usage or bad input, 3 inconclusive,
4 this machine cannot do what was asked
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="vbench", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure a model in the runtime that ships it: latency with its interval, "
        "accuracy on the same file, and a verdict on two.",
    )  # fmt: skip
    p.add_argument("models", nargs="+", type=Path, metavar="MODEL",
                   help=".onnx, .engine, a bundle; two are compared; or: selftest")  # fmt: skip

    g = p.add_argument_group("what runs it")
    g.add_argument("--runtime", help="by default the one for the file's ending")
    g.add_argument("--device", default="cpu", help="cpu, cuda, tensorrt; never replaced by another")
    g.add_argument("--threads", type=int, metavar="N", help="by default the runtime's own choice")
    g.add_argument("--batch", type=_ints, default=(1,), metavar="N[,N...]", help="several: a sweep")
    g.add_argument("--shape", type=_shape, action="append", default=[], metavar="NAME=1x3x224x224")
    g.add_argument("--inputs", type=Path, metavar="FILE.npz", help="arrays by input name")
    g.add_argument("--io-binding", action="store_true", help="keep the arrays on the device")
    g.add_argument("--no-optimize", dest="optimize", action="store_false",
                   help="ONNX Runtime without graph optimisation")  # fmt: skip

    g = p.add_argument_group("accuracy")
    g.add_argument("--data", help="digits, a folder of class folders, torchvision:NAME; by default "
                   "the held-out images that the bundle records")  # fmt: skip
    g.add_argument("--data-root", help="where torchvision's data lies")
    g.add_argument("--split", default="test", help="train, val or test")
    g.add_argument("--limit", type=int, metavar="N", help="only so many images, spread over all")
    g.add_argument("--preprocess", metavar="imagenet|JSON", help="where there is no bundle")
    g.add_argument("--no-accuracy", dest="accuracy", action="store_false")

    g = p.add_argument_group("how to measure")
    g.add_argument("--seconds", type=float, help="measure at least so long")
    g.add_argument("--seed", type=int, default=0)

    g = p.add_argument_group("comparison")
    g.add_argument("--margin", type=float, default=0.01, help="what counts as the same speed")

    g = p.add_argument_group("output")
    g.add_argument("--json", type=Path, metavar="FILE", help="everything, the raw samples included")
    return p


def _ints(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 1,8,32")
    return values


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, found, sizes = text.rpartition("=")
    try:
        shape = tuple(int(part) for part in sizes.lower().split("x")) if sizes else ()
    except ValueError:
        shape = (-1,)
    if not found or not name or any(size < 0 for size in shape):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=1x3x224x224")
    return name, shape


def options(argv: Sequence[str]) -> Options:
    """Flags as `Options`."""
    values = vars(parser().parse_args(argv))
    values["models"] = tuple(values["models"])
    values["shape"] = dict(values["shape"])
    return Options(**values, command=("vbench", *argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(options(argv))
    except UserError as error:
        print(f"vbench: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("vbench: stopped.", file=sys.stderr)
        return 130


def _run(asked: Options) -> int:
    from rich.console import Console

    from . import job, report, report_json

    errors = Console(stderr=True)
    with errors.status("") as status:
        result = job.run(asked, status.update)
    report.show(result, Console())
    if asked.json:
        report_json.write(result, asked.json)
    return status_of(result)


def status_of(result: object) -> int:
    from .result import Result

    assert isinstance(result, Result)
    outcomes = {check.outcome for check in result.checks}
    if "fail" in outcomes:
        return 1
    inconclusive = result.comparison and result.comparison.verdict == "INCONCLUSIVE"
    return 3 if "inconclusive" in outcomes or (inconclusive and not result.checks) else 0


if __name__ == "__main__":
    sys.exit(main())
