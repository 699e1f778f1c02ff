from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vcompress.bench import onnx_file
from vcompress.bench.errors import UserError


def test_the_file_is_read_as_the_onnx_package_reads_it(models: Path) -> None:
    found = onnx_file.read(models / "classifier.onnx")
    truth = onnx.load(str(models / "classifier.onnx"))
    assert found.opsets == {"ai.onnx": 17}
    assert found.ir_version == truth.ir_version
    assert sum(found.operators.values()) == len(truth.graph.node) == 5
    assert found.weight_bytes == {"float32": 4 * (8 * 3 * 3 * 3 + 8 * 10)}
    assert found.precision == "float32"
    assert onnx_file.read(models / "half.onnx").precision == "float16"


@pytest.mark.parametrize("make", [onnx_file.identity_model, onnx_file.chain_model])
def test_the_models_written_here_pass_the_onnx_checker(make: object) -> None:
    assert callable(make)
    model = onnx.load_from_string(make())
    onnx.checker.check_model(model, full_check=True)


def test_a_precision_counts_elements_and_not_bytes(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", 1, [30])],
        [numpy_helper.from_array(np.ones(30, np.float32), "a"),
         numpy_helper.from_array(np.ones(100, np.int8), "b")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    found = onnx_file.read(tmp_path / "m.onnx")
    assert found.weight_bytes == {"float32": 120, "int8": 100}
    assert found.precision == "int8"


def external(folder: Path, location: str) -> Path:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "secret")
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["secret"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", 1, [4])], [tensor],
    )  # fmt: skip
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", ""])
def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    path = external(folder, location)
    with pytest.raises(UserError, match="outside the model's folder"):
        onnx_file.check_external(path, onnx_file.read(path))


def test_external_data_behind_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    path = external(folder, "weights.bin")
    with pytest.raises(UserError, match="outside the model's folder"):
        onnx_file.check_external(path, onnx_file.read(path))


def test_external_data_that_is_missing_is_named(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    with pytest.raises(UserError, match=r"'weights.bin', which is missing"):
        onnx_file.check_external(path, onnx_file.read(path))
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert onnx_file.check_external(path, onnx_file.read(path)) == (tmp_path / "weights.bin",)


def test_a_file_of_many_tensors_is_looked_for_once_and_the_end_of_each_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(1600))
    looked: list[onnx_file.External] = []
    located = onnx_file._located

    def counted(model: Path, item: onnx_file.External) -> Path:
        looked.append(item)
        return located(model, item)

    monkeypatch.setattr(onnx_file, "_located", counted)
    tensors = [onnx_file.External(f"t{n}", "weights.bin", str(16 * n), "16") for n in range(100)]
    facts = replace(onnx_file.read(path), external=tuple(tensors))
    assert onnx_file.check_external(path, facts) == (tmp_path / "weights.bin",)
    assert len(looked) == 1
    beyond = onnx_file.External("t100", "weights.bin", "1585", "16")
    facts = replace(facts, external=(*tensors, beyond))
    with pytest.raises(UserError, match=r"'t100' points .* beyond that file's end"):
        onnx_file.check_external(path, facts)


def test_six_hundred_mutated_files_are_read_or_refused_with_one_error(models: Path) -> None:
    data = (models / "classifier.onnx").read_bytes()
    rng = np.random.default_rng(0)
    target = models / "mutated.onnx"
    refused = 0
    for _ in range(600):
        changed = bytearray(data[: int(rng.integers(1, len(data) + 1))])
        for at in rng.integers(0, len(changed), size=4):
            changed[at] = int(rng.integers(0, 256))
        target.write_bytes(changed)
        try:
            onnx_file.read(target)
        except UserError:
            refused += 1
    assert refused > 300
    target.unlink()


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes | int, high: int = 0) -> bytes:
    """A field of the wire format; `high` is added to its tag."""
    if isinstance(content, int):
        return varint((number << 3) + high) + varint(content)
    return varint((number << 3 | 2) + high) + varint(len(content)) + content


def of_graph(*parts: bytes) -> bytes:
    return field(1, 9) + field(7, b"".join(parts)) + field(8, field(2, 17))


ENTRY = field(1, b"location") + field(2, b"../secret.bin")
OUTSIDE = field(1, 4) + field(2, 1) + field(8, b"w") + field(13, ENTRY) + field(14, 1)
SPARSE = field(1, OUTSIDE)


@pytest.mark.parametrize(
    "model",
    [
        of_graph(field(5, OUTSIDE)),
        of_graph(field(15, SPARSE)),
        of_graph(field(1, field(5, field(5, OUTSIDE)))),
        of_graph(field(1, field(5, field(22, SPARSE)))),
        of_graph(field(1, field(5, field(23, SPARSE)))),
        of_graph(field(1, field(5, field(6, field(5, OUTSIDE))))),
        of_graph() + field(25, field(11, field(5, OUTSIDE))),
        of_graph() + field(25, field(7, field(5, field(22, SPARSE)))),
        of_graph() + field(20, field(1, field(5, OUTSIDE))),
    ],
)
def test_external_data_are_found_wherever_a_tensor_can_stand(tmp_path: Path, model: bytes) -> None:
    # The onnx package reads the same bytes without a complaint.
    onnx.load_from_string(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model)
    assert [e.location for e in onnx_file.read(path).external] == ["../secret.bin"]
    with pytest.raises(UserError, match="outside the model's folder"):
        onnx_file.check_external(path, onnx_file.read(path))


@pytest.mark.parametrize(
    "model",
    [
        of_graph(field(5, OUTSIDE, 1 << 32)),
        of_graph(field(5, field(13, ENTRY, 1 << 32) + field(14, 1, 1 << 32))),
        of_graph(field(5, field(13, ENTRY) + field(14, 1 + (1 << 32)))),
        of_graph(field(5, field(13, field(1, b"location") + field(2, b"a")) + field(13, ENTRY))),
    ],
)
def test_what_two_parsers_would_read_in_two_ways_is_refused(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(model)
    with pytest.raises(UserError, match="is not a whole ONNX file"):
        onnx_file.read(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("*/_ORT_MEM_ADDR_/*", "an address"), ("model.onnx", "in different ways"),
        ("a" * 5000, "cannot be found"), ("round", "cannot be found"), ("a\0b", "can be called"),
        ("./../model/weights.bin", "outside the model's folder"), ("folder", "missing"),
    ],
)  # fmt: skip
def test_a_location_that_is_no_file_beside_the_model_is_refused(
    tmp_path: Path, location: str, said: str
) -> None:
    (tmp_path / "*/_ORT_MEM_ADDR_").mkdir(parents=True)
    (tmp_path / "*/_ORT_MEM_ADDR_/*").write_bytes(bytes(16))
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "folder").mkdir()
    path = external(tmp_path, location)
    with pytest.raises(UserError, match=said):
        onnx_file.check_external(path, onnx_file.read(path))


@pytest.mark.parametrize(
    ("offset", "length"), [("8", "16"), ("-1", "16"), ("0x0", "16"), ("", "1e1"), ("0", "9" * 19)]
)
def test_a_place_that_is_not_in_the_file_is_refused(
    tmp_path: Path, offset: str, length: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    facts = replace(
        onnx_file.read(external(tmp_path, "w.bin")),
        external=(onnx_file.External("w", "w.bin", offset, length),),
    )
    with pytest.raises(UserError, match=r"no number of bytes|beyond that file's end"):
        onnx_file.check_external(tmp_path / "model.onnx", facts)


def test_a_cache_of_links_is_read_and_a_link_elsewhere_is_not(tmp_path: Path) -> None:
    import onnxruntime

    for name in ("blobs", "snapshot"):
        (tmp_path / name).mkdir()
    model = external(tmp_path, "model.onnx_data").rename(tmp_path / "blobs/aaa")
    (tmp_path / "blobs/bbb").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    link, data = tmp_path / "snapshot/model.ONNX", tmp_path / "snapshot/model.onnx_data"
    link.symlink_to("../blobs/aaa")
    data.symlink_to("../blobs/bbb")
    found = onnx_file.check_external(link, onnx_file.read(link))
    assert found == (tmp_path / "blobs/bbb",)
    assert onnx_file.files_of(link) == (link, *found)
    session = onnxruntime.InferenceSession(str(link), providers=["CPUExecutionProvider"])
    assert session.run(None, {})[0].tolist() == [0, 1, 2, 3]
    (tmp_path / "secret").write_bytes(bytes(16))
    data.unlink()
    data.symlink_to("../secret")
    with pytest.raises(UserError, match="outside the model's folder"):
        onnx_file.check_external(link, onnx_file.read(link))
    # A runtime may look beside the link or beside what it leads to.
    data.unlink()
    data.write_bytes(bytes(16))
    (model.parent / "model.onnx_data").write_bytes(bytes(16))
    with pytest.raises(UserError, match="read in different ways"):
        onnx_file.check_external(link, onnx_file.read(link))


def test_the_ending_of_a_file_passes_no_check_by(tmp_path: Path) -> None:
    from vcompress.bench.reports.result import artefact
    from vcompress.bench.runtimes import open_session

    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    path = external(tmp_path / "model", "../secret.bin")
    for name in ("m.ONNX", "m.Onnx", "m.bin", "m.ORT"):
        renamed = path.rename(tmp_path / "model" / name)
        with pytest.raises(UserError, match="outside the model's folder"):
            open_session(renamed, runtime="onnxruntime")
        path = renamed
    path = external(tmp_path, "secret.bin").rename(tmp_path / "m.ONNX")
    assert artefact(path, "m").size_bytes == path.stat().st_size + 16


@pytest.mark.parametrize("packed", [True, False])
def test_a_tensor_of_a_million_dimensions_is_refused_at_once(tmp_path: Path, packed: bool) -> None:
    sizes = b"\x7f" * 1_000_000
    dims = b"\x0a" + _length(len(sizes)) + sizes if packed else b"".join([b"\x08\x7f"] * 1_000_000)
    tensor = dims + b"\x10\x01"
    graph = b"\x2a" + _length(len(tensor)) + tensor
    model = b"\x08\x08\x3a" + _length(len(graph)) + graph + b"\x42\x04\x0a\x00\x10\x11"
    (tmp_path / "m.onnx").write_bytes(model)
    begin = perf_counter()
    with pytest.raises(UserError, match="not a whole ONNX file"):
        onnx_file.read(tmp_path / "m.onnx")
    assert perf_counter() - begin < 1  # their product takes a minute


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def test_a_file_of_too_many_fields_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MOST_FIELDS", 1000)
    path = tmp_path / "m.onnx"
    emit = onnx_file._emit
    for nodes, refused in ((900, False), (1001, True)):
        graph = emit(7, emit(1, b"") * nodes)
        path.write_bytes(emit(1, 8) + graph + emit(8, emit(2, 17)))
        if refused:
            with pytest.raises(UserError, match="it holds more than 1,000 fields"):
                onnx_file.read(path)
        else:
            assert onnx_file.read(path).operators == {"": 900}


def test_a_field_of_another_kind_is_unknown_as_it_is_to_parsers(tmp_path: Path) -> None:
    """A number where bytes belong, behind the bytes, must not take their place."""
    emit = onnx_file._emit
    entry = emit(13, emit(1, "location") + emit(1, 7) + emit(2, "../secret.bin") + emit(2, 7))
    tensor = emit(1, 4) + emit(2, 1) + entry + emit(14, 1) + emit(14, b"\0") + emit(13, 5)
    node = emit(4, "Identity") + emit(4, 9)
    content = emit(1, 8) + emit(7, emit(1, node) + emit(1, 3) + emit(5, tensor))
    content += emit(8, emit(2, 17) + emit(2, b"x"))
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    found, truth = onnx_file.read(path), onnx.ModelProto.FromString(content)
    (held,) = truth.graph.initializer
    assert held.data_location == onnx.TensorProto.EXTERNAL
    assert [item.location for item in found.external] == [e.value for e in held.external_data]
    assert found.operators == {node.op_type: 1 for node in truth.graph.node} == {"Identity": 1}
    assert found.opsets == {"ai.onnx": truth.opset_import[0].version}
    with pytest.raises(UserError, match="outside the model's folder"):
        onnx_file.check_external(path, found)
