from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vcompress.bench.bundle import bundle
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.runtimes import open_session
from vcompress.bench.timing.inputs import resolve_shapes, synthetic

torch = pytest.importorskip("torch")
store = pytest.importorskip("vcompress.compress.bundles.store")
models = pytest.importorskip("vcompress.compress.models.catalogue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = models.ModelSpec("mobilenet_v3_small", 3)
    network = store.Network(models.build(spec).eval(), spec)
    with bundle.create(
        tmp_path / "b", input=bundle.InputSpec("x", (3, 32, 32)),
        preprocess=bundle.Preprocess(size=(32, 32)), labels=("a", "b", "c"), data=None, history=(),
    ) as staging:  # fmt: skip
        store.save_network(network, staging)
    return tmp_path / "b"


def test_a_bundle_is_rebuilt_and_computes_what_its_module_does(folder: Path) -> None:
    with open_session(folder, threads=1) as session:
        assert (session.facts.runtime, session.provider) == ("torch", "eager")
        assert session.facts.options["threads"] == 1
        feed = synthetic(session.inputs, resolve_shapes(session.inputs, 2)).ring[0]
        found = session.run(feed)["output"]
        model = store.load_network(bundle.Bundle.open(folder)).model
        with torch.inference_mode():
            want = model(torch.from_numpy(feed["x"])).numpy()
        np.testing.assert_allclose(found, want, atol=1e-6)
        nodes = session.profile(feed, runs=2)
        assert sum(n.share for n in nodes) == pytest.approx(1)
        with pytest.raises(UserError, match=r"takes x \[batch, 3, 32, 32\] float32"):
            session.run({"x": np.ones((1, 3, 16, 16), np.float32)})


def test_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EnvironmentLacks, match="torch sees no GPU"):
        open_session(folder, device="cuda")
