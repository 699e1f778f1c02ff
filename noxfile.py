"""The runtimes of the last two years, with each Python: `nox`, or `nox -s "runtimes-3.12(1.22)"`.

Each session has an environment of its own, with the Pythons that are installed. In it one network
of each family is calibrated, exported and held against torch by `quantize_coverage.py`, and the
tests of the export and of `verify` run.
"""

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
ONNX_RUNTIMES = {"1.20": "1.20.*", "1.22": "1.22.*", "1.24": "1.24.*", "newest": "*"}
TESTS = ["tests/export/test_integers.py", "tests/export/test_library.py", "tests/bench/verify"]

nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
@nox.parametrize("onnxruntime", list(ONNX_RUNTIMES), ids=list(ONNX_RUNTIMES))
def runtimes(session: nox.Session, onnxruntime: str) -> None:
    """Export, parity and verify with one ONNX Runtime."""
    session.install("-e", ".[cpu,train,release,dev]")
    session.install(f"onnxruntime=={ONNX_RUNTIMES[onnxruntime]}")
    session.env["OMP_NUM_THREADS"] = "1"
    sweep = ["--set", "families", "--images", "32", "--require", *session.posargs]
    session.run("python", "tests/benchmarks/quantize_coverage.py", *sweep)
    session.run("python", "-m", "pytest", "-q", *TESTS)
