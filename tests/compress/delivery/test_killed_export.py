"""SIGKILL at 50 random moments of `vcompress export`: the bundle is the old one or the new one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# torch is imported once; every attempt is a process of its own, forked from there.
SCRIPT = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, os.getcwd())
from vcompress.bench.verify.check import verify
from vcompress.compress.delivery import reexport
from vcompress.compress.pipeline import measure
from vcompress.export import onnx_export, parity
import onnx, onnxruntime, onnxscript
measure.LATENCY_SECONDS = 0.2
bundle, rng = Path("runs/net"), random.Random(0)

def start():
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            reexport.export_bundle(bundle, None, "tiny_nets:batch")
        finally:
            os._exit(0)
    return child

begin = time.monotonic()
os.waitpid(start(), 0)
whole = time.monotonic() - begin
for attempt in range(int(sys.argv[1])):
    child = start()
    time.sleep(rng.uniform(0, whole))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    left = [p for p in Path("runs").iterdir() if p.name != "net"]
    named = all(p.name.startswith(".net.") and p.suffix in (".writing", ".lock") for p in left)
    half = [p.name for p in left if p.suffix == ".writing" and any(p.glob("new/*"))]
    ok = verify(bundle, golden=attempt % 10 == 0, runtimes=())
    print(json.dumps([os.WIFSIGNALED(status), named, len(half), list(ok.problems)]), flush=True)
    for path in left:
        path.unlink() if path.is_file() else shutil.rmtree(path)
"""


@pytest.mark.slow
def test_fifty_kills_of_an_export_never_lose_the_bundle(work: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "50"], cwd=work, capture_output=True, text=True,
        timeout=1200, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(found) == 50
    assert all(named and not problems for _, named, _, problems in found)
    # Most were hit while they ran, and some while files were being written.
    assert sum(killed for killed, *_ in found) >= 30
    assert sum(half for *_, half, _ in found) >= 3
