"""The device's own half of vbench. Runs only where there is an NVIDIA GPU: pytest -m gpu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vcompress.bench import onnx_file
from vcompress.bench.errors import EnvironmentLacks
from vcompress.bench.runtimes import open_session
from vcompress.bench.runtimes.cuda import Cuda
from vcompress.bench.timing.inputs import resolve_shapes, synthetic
from vcompress.bench.timing.measure import Effort, measure

pytestmark = pytest.mark.gpu


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    try:
        Cuda()
    except EnvironmentLacks as error:
        pytest.skip(str(error))
    path = tmp_path / "chain.onnx"
    path.write_bytes(onnx_file.chain_model())
    return path


def test_the_cuda_provider_computes_what_the_cpu_does(chain: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDAExecutionProvider: pip install onnxruntime-gpu")
    with open_session(chain) as cpu, open_session(chain, device="cuda") as gpu:
        feed = synthetic(cpu.inputs, resolve_shapes(cpu.inputs))
        assert gpu.provider == "CUDAExecutionProvider"
        assert gpu.facts.fallback == ()
        np.testing.assert_allclose(
            gpu.run(feed.ring[0])["y"], cpu.run(feed.ring[0])["y"], atol=2e-2
        )
    with open_session(chain, device="cuda", io_binding=True) as bound:
        m = measure(bound, feed, Effort.quick(1.0))
    assert m.median_ms > 0


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_computes_what_the_cpu_does_and_its_device_time_is_within_the_latency(
    chain: Path, tmp_path: Path, cuda_graph: bool
) -> None:
    trt = pytest.importorskip("tensorrt", reason="pip install tensorrt")

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: object, text: str) -> None:
            print(severity, text)

    builder = trt.Builder(Logger())
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, Logger())
    assert parser.parse(chain.read_bytes())
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    engine = tmp_path / "chain.engine"
    engine.write_bytes(bytes(plan))
    with open_session(chain) as cpu, open_session(engine, cuda_graph=cuda_graph) as gpu:
        feed = synthetic(cpu.inputs, resolve_shapes(cpu.inputs))
        np.testing.assert_allclose(
            gpu.run(feed.ring[0])["y"], cpu.run(feed.ring[0])["y"], atol=2e-2
        )
        m = measure(gpu, feed, Effort.quick(1.0))
    assert m.device_ns is not None
    assert len(m.device_ns) == len(m.samples_ns)
    assert 0 < np.median(m.device_ns) < np.median(m.samples_ns)
