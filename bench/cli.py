"""The command vbench. It imports nothing heavy, so its help appears at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from .apart import ended_by_signals
from .errors import UserError, reader_gone
from .run.options import Options
from .tasks import TABLE
from .text import shown

EXAMPLES = """\
examples:
  vbench model.onnx                        latency, memory, size; in a bundle accuracy as well
  vbench a.onnx b.onnx --data digits       B against A, interleaved, with a verdict
  vbench model.onnx --threads 1 --json result.json
  vbench model.onnx --shape images=1x3x640x640
  vbench model.onnx --baseline result.json --gate gate.toml --junit report.xml
  vbench selftest                          is this machine quiet enough to measure on?

exit status: 0 the limits hold, 1 a gate failed, 2 usage or bad input, 3 inconclusive,
4 this machine cannot do what was asked
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="vbench", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure a model in the runtime that ships it: latency with its interval, "
        "accuracy on the same file, and a verdict on two.",
    )  # fmt: skip
    p.add_argument("models", nargs="+", type=Path, metavar="MODEL",
                   help="file (.onnx, .engine) or bundle; of two the second is compared with the "
                   "first; selftest measures the machine")  # fmt: skip

    g = p.add_argument_group("what runs it")
    g.add_argument("--runtime", metavar="NAME",
                   help="runtime; default: the one for the file's ending, or for the bundle's "
                   "target")  # fmt: skip
    g.add_argument("--device", metavar="NAME",
                   help="device, such as cpu, cuda or tensorrt; no other one stands "
                   "in for it")  # fmt: skip
    g.add_argument("--threads", type=int, metavar="N",
                   help="number of threads, 1 to 4096; default: that of the bundle's latency, else "
                   "the runtime's choice")  # fmt: skip
    g.add_argument("--batch", type=_ints, default=(), metavar="N[,N...]",
                   help="images in a call, 1 to 1048576, for the latency and the accuracy; several "
                   "numbers make a sweep; default: 1, or what the model fixes")  # fmt: skip
    g.add_argument("--shape", type=_shape, action="append", default=[], metavar="NAME=1x3x224x224",
                   help="shape of an input whose dimensions are free")  # fmt: skip
    g.add_argument("--inputs", type=Path, metavar="FILE.npz", help="arrays by the input's name")
    g.add_argument("--io-binding", action="store_true", help="keep the arrays on the device")
    g.add_argument("--cuda-graph", action="store_true",
                   help="run a TensorRT engine as a CUDA graph")  # fmt: skip
    g.add_argument("--rebuild", action="store_true",
                   help="build the engine of a bundle again, from its ONNX file, where it does not "
                   "fit this GPU or TensorRT, and keep it")  # fmt: skip
    g.add_argument("--compile", action="store_true", help="run PyTorch with torch.compile")
    g.add_argument("--no-optimize", dest="optimize", action="store_false",
                   help="run ONNX Runtime without graph optimisation")  # fmt: skip

    g = p.add_argument_group("accuracy")
    g.add_argument("--data",
                   help="data set: digits, scenes, a folder (class folders, labels.csv, "
                   "targets.csv, or images and masks), torchvision:NAME, or your own "
                   "module:factory; default: the held-out images that the bundle "
                   "records")  # fmt: skip
    g.add_argument("--data-root", metavar="DIR",
                   help="folder of torchvision's files; your own factory is told it")  # fmt: skip
    g.add_argument("--trust", metavar="MODULE:FACTORY",
                   help="names of your own code that a bundle may run, with commas between "
                   "several")  # fmt: skip
    g.add_argument("--task", metavar="NAME",
                   help=f"task of the model: {', '.join(TABLE)}; default: the bundle's, else "
                   "classification")  # fmt: skip
    g.add_argument("--classes", type=Path, metavar="FILE",
                   help="names of the model's outputs, a line each, where the data have only "
                   "some of its classes, or in another order; the word imagenet means the 1,000 "
                   "classes of ImageNet")  # fmt: skip
    g.add_argument("--split", metavar="NAME",
                   help="split that is measured on: train, val, test or all; default: test, and "
                   "all of a folder without splits that no bundle was trained on")  # fmt: skip
    g.add_argument("--limit", type=int, metavar="N",
                   help="number of images, spread over the split; default: all")  # fmt: skip
    g.add_argument("--preprocess", metavar="imagenet|JSON",
                   help="preprocessing of a model that is in no bundle")  # fmt: skip
    g.add_argument("--no-accuracy", dest="accuracy", action="store_false",
                   help="measure no accuracy")  # fmt: skip

    g = p.add_argument_group("how to measure")
    g.add_argument("--seconds", type=float, metavar="S",
                   help="duration of a measurement without its warm-up, seconds, above 0; default: "
                   "2 to 3, as the interval needs")  # fmt: skip
    g.add_argument("--publish", type=int, nargs="?", const=5, default=0, metavar="N",
                   help="run the full protocol in N fresh processes (5 "
                   "without a number)")  # fmt: skip
    g.add_argument("--concurrency", type=int, default=0, metavar="N",
                   help="number of calls in flight, for a separate run "
                   "that measures throughput")  # fmt: skip
    g.add_argument("--rate", type=float, default=0.0, metavar="HZ",
                   help="requests a second at random times, for a separate run that measures "
                   "response times")  # fmt: skip
    g.add_argument("--profile", action="store_true", help="show the ten costliest nodes")
    g.add_argument("--no-cold-start", dest="cold_start", action="store_false",
                   help="skip the fresh process, which also protects from a "
                   "file that crashes")  # fmt: skip
    g.add_argument("--load-timeout", type=float, default=120.0, metavar="S",
                   help="time limit of loading and of each call of the model, "
                   "seconds, above 0; default: 120")  # fmt: skip
    g.add_argument("--seed", type=int, default=0,
                   help="random seed for inputs and for the splits of "
                   "--data, 0 or more; default: 0")  # fmt: skip

    g = p.add_argument_group("comparison and gate")
    g.add_argument("--baseline", type=Path, metavar="JSON", help="saved result to compare with")
    g.add_argument("--margin", type=float, default=0.01,
                   help="difference in speed that counts as none, a "
                   "share from 0 to 1; default: 0.01")  # fmt: skip
    g.add_argument("--gate", type=Path, metavar="TOML",
                   help="file of limits that the model must hold; see docs/vbench.md")  # fmt: skip
    g.add_argument("--require", action="append", default=[], metavar="LIMIT",
                   help="one limit, such as 'latency_ms<=4', 'top1>=0.97' or 'mAP_drop<=0.01'; may "
                   "be given several times")  # fmt: skip

    g = p.add_argument_group("output")
    g.add_argument("--json", type=Path, metavar="FILE",
                   help="file for the whole result as JSON, raw samples included")  # fmt: skip
    g.add_argument("--html", type=Path, metavar="FILE",
                   help="file for a page with plots that works offline")  # fmt: skip
    g.add_argument("--junit", type=Path, metavar="FILE", help="file for the gate as JUnit XML")
    g.add_argument("--markdown", type=Path, metavar="FILE",
                   help="file for a summary for a pull request")  # fmt: skip
    g.add_argument("--as", dest="restate", metavar="TOOL",
                   help="tool in whose terms the numbers are shown as well: trtexec10, trtexec11, "
                   "perf_test or benchmark_app")  # fmt: skip
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
    values["require"] = tuple(values["require"])
    return Options(**values, command=("vbench", *argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with ended_by_signals():
        return _main(argv)


def _main(argv: list[str]) -> int:
    try:
        status = _run(options(argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        return reader_gone()
    except UserError as error:
        print(shown(f"vbench: {error}"), file=sys.stderr)
        return error.status
    except OSError as error:  # whichever file the user named: it is gone, unreadable, no file
        where = f"{error.filename}: " if error.filename else ""
        print(
            shown(f"vbench: {where}{error.strerror or error}. Look at the path."), file=sys.stderr
        )
        return UserError.status
    except MemoryError:
        print("vbench: there is not enough memory for this. Give a smaller --batch or --shape, or "
              "fewer images with --limit.", file=sys.stderr)  # fmt: skip
        return UserError.status
    except KeyboardInterrupt:
        print("vbench: stopped.", file=sys.stderr)
        return 130


def _run(asked: Options) -> int:
    if str(asked.models[0]) == "selftest" and not asked.models[0].exists():
        return _selftest(asked)
    _check(asked)
    from rich.markup import escape

    from .reports.console import Shown
    from .run import apart

    with Shown(stderr=True).status("") as status:
        result = apart.run(asked, lambda text: status.update(escape(text)))
    from .bundle.output import write_text
    from .reports import ci as report_ci
    from .reports import html as report_html
    from .reports import json as report_json
    from .reports import restate, terminal

    console = Shown()
    if asked.json:
        report_json.write(result, asked.json)
    for path, text in (
        (asked.html, report_html.page),
        (asked.junit, report_ci.junit),
        (asked.markdown, report_ci.markdown),
    ):
        if path:
            write_text(path, text(result))
    # Shown last: a reader that goes away (`| head`) must not cost the files.
    terminal.show(result, console)
    if asked.restate:
        for model in result.models:
            console.print(f"\n{model.artefact.name} as {asked.restate} says it:", markup=False)
            said = restate.restate(model, asked.restate)
            console.print(said, highlight=False, markup=False, soft_wrap=True)
    return status_of(result)


def _check(asked: Options) -> None:
    """What can be refused before anything is measured."""
    from .bundle.output import check_outputs
    from .onnx_file import files_of

    if asked.restate:
        from .reports.restate import TOOLS

        if asked.restate not in TOOLS:
            raise UserError(f"--as {asked.restate}: expected one of {', '.join(TOOLS)}.")
    files = (asked.inputs, asked.baseline, asked.gate, asked.classes)
    read = [*chain.from_iterable(map(files_of, asked.models)), *filter(None, files)]
    check_outputs((asked.json, asked.html, asked.junit, asked.markdown), read)


def _selftest(asked: Options) -> int:
    from .reports import terminal
    from .reports.console import Shown
    from .run import apart

    if len(asked.models) > 2:
        raise UserError("vbench selftest takes no model or one.")
    with Shown(stderr=True).status("") as status:
        found = apart.selftest(asked, status.update)
    terminal.show_selftest(found, Shown())
    if not found.sound:
        return 3
    return 0 if found.quiet else 3


def status_of(result: object) -> int:
    from .reports.result import Result

    assert isinstance(result, Result)
    outcomes = {check.outcome for check in result.checks}
    if "fail" in outcomes:
        return 1
    versus = result.comparison or result.against
    # With a gate it is the gate that decides.
    unsure = versus is not None and versus.verdict == "INCONCLUSIVE" and not result.checks
    return 3 if "inconclusive" in outcomes or unsure else 0


if __name__ == "__main__":
    sys.exit(main())
