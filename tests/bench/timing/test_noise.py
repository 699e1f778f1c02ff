from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vcompress.bench.runtimes.session import Facts
from vcompress.bench.timing import noise
from vcompress.bench.timing.environment import Counters, Disturbance, disturbance, preflight
from vcompress.bench.timing.measure import Measurement, Warmup

QUIET = Disturbance(steal=0.0, others=0.0, throttled=0)
rng = np.random.default_rng(0)


def measured(samples_ms: np.ndarray, device: str = "cpu", threads: int = 1) -> Measurement:
    n = len(samples_ms)
    return Measurement(
        path=Path("m.onnx"),
        facts=Facts("onnxruntime", "1", device, "P", {"intra_op_num_threads": threads}),
        shapes={"x": (1,)}, inputs_from="", ring=64,
        samples_ns=(samples_ms * 1e6).astype(np.int64), starts_ns=np.arange(n), load_ms=1.0,
        first_run_ms=1.0, warmup=Warmup(20, 1.0, True, (1.0,) * 5), stopped="precision",
    )  # fmt: skip


CALM = rng.normal(1, 0.005, 2000)


def test_a_calm_run_warns_of_nothing() -> None:
    assert noise.warnings(measured(CALM), preflight(), QUIET) == ()


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (rng.normal(1, 0.05, 2000), "vary by 5"),
        (CALM * np.linspace(1, 1.05, 2000), "drifted by +4"),
        (np.where(np.arange(2000) % 3, CALM, CALM * 1.3), "two levels"),
        (np.where(np.arange(2000) % 50, CALM, CALM * 3), "p99 is 3.0 times the median"),
    ],
)
def test_each_sign_of_noise_is_named(samples: np.ndarray, said: str) -> None:
    assert said in "; ".join(noise.warnings(measured(samples)))


def test_the_tail_is_judged_more_strictly_on_a_gpu() -> None:
    samples = np.where(np.arange(2000) % 50, CALM, CALM * 1.7)
    assert noise.warnings(measured(samples)) == ()
    assert "p99" in noise.warnings(measured(samples, "cuda"))[0]


def test_what_the_machine_did_meanwhile_is_named_first() -> None:
    found = noise.warnings(
        replace(measured(CALM), nonfinite=("y",)), None, Disturbance(0.03, 1.2, 4)
    )
    assert found[0].startswith("the hypervisor took 3.0%")
    assert "1.2 CPUs busy: the times are not the model's alone" in found[1]
    assert "throttled 4 times" in found[2]
    assert found[3] == "NaN or infinity in the output y"


def test_more_threads_than_cpus_and_a_quota_below_them_are_named() -> None:
    small = replace(preflight(), cpus_allowed=(0,), cpu_quota=0.5)
    found = "; ".join(noise.warnings(measured(CALM, threads=4), small, QUIET))
    assert "4 threads on 1 CPUs" in found
    assert "allows 0.5 CPUs" in found


def test_nodes_that_another_provider_takes_are_listed() -> None:
    m = measured(CALM)
    m = replace(m, facts=replace(m.facts, provider="CUDA", fallback=("Resize r on CPU",)))
    assert noise.warnings(m) == ("1 nodes do not run on CUDA: Resize r on CPU",)


def test_counters_give_shares_of_what_grew() -> None:
    a = Counters(0.0, (0, 0, 0, 0, 0, 0, 0, 0), 0.0, 3)
    b = Counters(2.0, (300, 0, 0, 80, 0, 0, 0, 20), 1.0, 5)  # 3 s busy in 2 s, 1 s of them ours
    found = disturbance(a, b)
    assert found.steal == pytest.approx(0.05)
    assert found.others == pytest.approx(1.0)
    assert found.throttled == 2


def test_outliers_are_counted_and_stay() -> None:
    samples = CALM.copy()
    samples[:7] = 10
    m = measured(samples)
    assert noise.outliers(m) == 7
    assert len(m.samples_ns) == 2000
