from pathlib import Path

import pytest
import torch
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress.pruning.sparsity import (
    held_sparse,
    is_2_4,
    mask_2_4,
    sparse_in_file,
    sparse_layers,
    sparsify,
    sparsity_of,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def test_the_two_largest_of_four_inputs_stay() -> None:
    weight = torch.tensor([[1.0, -4.0, 2.0, 3.0, 0.1, 0.2, -0.3, 0.0]])
    assert mask_2_4(weight).tolist() == [[False, True, False, True, False, True, True, False]]
    kernels = torch.randn(6, 8, 3, 3)
    mask = mask_2_4(kernels)
    # neighbours lie along the input channels, for each place of the kernel
    assert (mask.view(6, 2, 4, 3, 3).sum(2) == 2).all()
    with pytest.raises(UserError, match="in fours; got 3"):
        mask_2_4(torch.randn(2, 3, 1, 1))


def test_layers_in_fours_become_sparse_and_the_others_are_named() -> None:
    model = network()
    done, left_alone = sparsify(model)
    assert done == ["2", "7"] == sparse_layers(model)
    assert left_alone == {"0": "3 input channels are not in fours"}
    assert float((model[2].weight == 0).float().mean()) == 0.5
    assert sparsify(network(), protect=("7",))[1]["7"] == "protected"
    with pytest.raises(UserError, match="protect: 'fc' is no module"):
        sparsify(network(), protect=("fc",))
    with pytest.raises(UserError, match="none was sparsified"):
        sparsify(nn.Sequential(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_training_keeps_the_zeros_and_moves_the_rest(kind: type[torch.optim.Optimizer]) -> None:
    model = network()
    sparsify(model)
    before = model[2].weight.detach().clone()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    with held_sparse(model) as held:
        assert held == ["2", "7"]
        optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.1, **options)  # type: ignore[call-arg]
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 3, 8, 8)).square().mean().backward()
            optimizer.step()
    alive = before != 0
    assert torch.equal(model[2].weight == 0, ~alive)
    assert float((model[2].weight - before)[alive].abs().min()) > 0


def test_sparsity_is_verified_in_the_exported_file(tmp_path: Path) -> None:
    model = network().eval()
    sparsify(model, protect=("7",))
    torch.onnx.export(
        model, (torch.randn(1, 3, 8, 8),), str(tmp_path / "m.onnx"), dynamo=True, verbose=False
    )
    found = sparse_in_file(tmp_path / "m.onnx")
    assert sorted(found.values()) == [False, False, True]
    assert next(name for name, sparse in found.items() if sparse).startswith("2.weight")
    assert sparsity_of(model, tmp_path / "m.onnx") == {"layers": 1, "in_file": 1}
    assert sparsity_of(network(), tmp_path / "m.onnx") is None


def test_zeros_that_the_file_lost_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = network().eval()
    torch.onnx.export(
        model, (torch.randn(1, 3, 8, 8),), str(tmp_path / "m.onnx"), dynamo=True, verbose=False
    )
    sparsify(model)
    assert sparsity_of(model, tmp_path / "m.onnx") == {"layers": 2, "in_file": 0}
    assert "2 layers are 2:4 sparse, and 0 weights of the file" in caplog.text


def test_int8_weights_are_found_behind_their_dequantisation(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = torch.randn(4, 8)
    stored = ((weight * mask_2_4(weight)) * 40).round().clamp(-127, 127).to(torch.int8).numpy()
    scale = np.array(0.025, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["wf"]),
            helper.make_node("Transpose", ["wf"], ["wt"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "wt"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(stored, "w"), numpy_helper.from_array(scale, "s")],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    assert sparse_in_file(tmp_path / "m.onnx") == {"w": True}


def test_a_dense_weight_is_not_called_sparse() -> None:
    assert not is_2_4(torch.ones(4, 8))
    assert not is_2_4(torch.zeros(4, 8))  # nothing left is no pattern
    assert not is_2_4(torch.ones(4))
