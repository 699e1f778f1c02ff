"""Networks of transformers: names, folders, what a bundle may say about them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vcompress.bench.bundle import Bundle, Preprocess
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.compress.delivery.import_checkpoint import import_checkpoint
from vcompress.compress.models import huggingface
from vcompress.compress.models.catalogue import build, make_spec, spec_from_json
from vcompress.compress.models.head import heads, replace_head
from vcompress.compress.models.huggingface import GIVE_MAPS, TINY
from vcompress.compress.models.outputs import check_forward
from vcompress.compress.options import Options
from vcompress.compress.pipeline import measure

transformers = pytest.importorskip("transformers")


def save(folder: Path, family: str = "vit", labels: tuple[str, ...] = ("a", "b", "c")) -> Any:
    """A network of the library's own with its config.json and safetensors; returns it."""
    torch.manual_seed(1)
    kind = transformers.CONFIG_MAPPING[family]
    config = kind(
        **TINY[family], image_size=16, num_labels=len(labels), id2label=dict(enumerate(labels))
    )
    auto = transformers.AutoModelForImageClassification
    if family in GIVE_MAPS:
        auto = transformers.AutoModelForSemanticSegmentation
    model = auto.from_config(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", list(TINY))
def test_a_family_takes_images_and_gives_logits_and_is_rebuilt_from_json(family: str) -> None:
    spec = make_spec(f"hf:{family}-tiny", 7, (32, 32))
    assert spec.name == f"hf:{family}"
    torch.manual_seed(0)
    model = build(spec).eval()
    maps = family in GIVE_MAPS
    check_forward(model, torch.randn(1, 3, 32, 32), 7, maps=maps)
    (head,) = heads(model, 7)
    last = {"resnet": "network.classifier.1", "segformer": "network.decode_head.classifier"}
    assert head == last.get(family, "network.classifier")
    read = spec_from_json(json.loads(json.dumps(spec.to_json())), "architecture.json")
    torch.manual_seed(0)
    again = build(read).state_dict()
    assert read == spec
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    replace_head(model, 7, 3)
    check_forward(model, torch.randn(1, 3, 32, 32), 3, maps=maps)


def test_a_family_without_tiny_has_the_librarys_own_sizes() -> None:
    with torch.device("meta"):
        model = build(make_spec("hf:vit", 1000, (224, 224)))
    assert sum(p.numel() for p in model.parameters()) == 86_567_656  # ViT-B/16


@pytest.mark.parametrize("family", ["vit", "segformer"])
def test_a_folder_gives_its_weights_and_computes_what_the_library_does(
    family: str, tmp_path: Path
) -> None:
    theirs = save(tmp_path / "net", family)
    side = 64 if family == "segformer" else 16
    spec = make_spec(f"hf:{tmp_path / 'net'}", 3, (side, side))
    model = build(spec, "default").eval()
    images = torch.randn(4, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(pixel_values=images).logits)
    # The bundle's own record has no folder in it.
    assert str(tmp_path) not in json.dumps(spec.to_json())
    other = build(make_spec(f"hf:{tmp_path / 'net'}", 5, (side, side)), "default")
    own = other.state_dict()
    name, head = "network.vit.layernorm.weight", "network.classifier.weight"
    if family == "segformer":
        name, head = (
            "network.decode_head.linear_fuse.weight",
            "network.decode_head.classifier.weight",
        )
    assert torch.equal(own[name], model.state_dict()[name])
    assert own[head].shape[:2] == (5, 64)


def test_a_folder_becomes_a_bundle_with_its_labels_and_preprocessing_and_needs_the_folder_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.compress.bundles.store import load_network

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.1)
    theirs = save(tmp_path / "net", labels=("cat", "dog", "cow"))
    (tmp_path / "net" / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 16, "width": 16}, "resample": 3, "do_normalize": True,
                    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]})
    )  # fmt: skip
    import_checkpoint("hf:net", "default", None, Path("runs/net"), Options())
    (tmp_path / "net").rename(tmp_path / "gone")
    bundle = Bundle.open("runs/net")
    assert bundle.labels == ("cat", "dog", "cow")
    assert bundle.preprocess == Preprocess(
        (16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bicubic"
    )
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        got = load_network(bundle).model(images)
        torch.testing.assert_close(got, theirs(pixel_values=images).logits)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"size": {"height": 224, "width": 224}}, Preprocess((224, 224))),
        ({"size": 224, "resample": 0}, Preprocess((224, 224), interpolation="nearest")),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True,
             "crop_size": {"height": 224, "width": 224}},
            Preprocess((224, 224), 256),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, Preprocess((224, 224), 256)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, Preprocess((384, 384))),
        (
            {"size": 224, "do_normalize": False},
            Preprocess((224, 224), mean=(0.0,) * 3, std=(1.0,) * 3),
        ),
    ],
)  # fmt: skip
def test_the_processor_of_a_folder_is_read(
    data: dict[str, Any], wanted: Preprocess, tmp_path: Path
) -> None:
    norm = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**norm, **data}))
    assert huggingface.preprocess(f"hf:{tmp_path}") == wanted


def test_a_processor_that_cannot_be_expressed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"rescale_factor": 1, "size": 224}')
    with pytest.raises(UserError, match=r"scaled by 1; expected 1/255. Give --preprocess"):
        huggingface.preprocess(f"hf:{tmp_path}")
    file.write_text('{"size": 224}')
    with pytest.raises(UserError, match=r"cannot be understood .*image_mean"):
        huggingface.preprocess(f"hf:{tmp_path}")
    file.unlink()
    assert huggingface.preprocess(f"hf:{tmp_path}") is None
    assert huggingface.preprocess("resnet18") is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"config.json cannot be read as JSON .*save_pretrained"),
        ({"model_type": "vitt"}, r"the family 'vitt'. Did you mean 'vit'"),
        ({"model_type": "bert"}, r"the family 'bert'"),
        (
            {"model_type": "vit", "architectures": ["ViTForMaskedImageModeling"]},
            "is of ViTForMaskedImageModeling, another task. Expected ViTForImageClassification",
        ),
        ({"model_type": "vit", "hidden_size": "os.system"}, r"config.hidden_size = 'os.system'"),
        ([], "holds a list, expected a table"),
    ],
)
def test_a_folder_of_something_else_is_refused(config: Any, message: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        make_spec(f"hf:{tmp_path}", 3, (16, 16))


def test_an_unknown_family_suggests_the_nearest_and_pickled_weights_are_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"unknown model 'hf:resnett'. Did you mean 'resnet'"):
        make_spec("hf:resnett", 3, (16, 16))
    with pytest.raises(UserError, match=r"a family with random weights. Name a folder"):
        build(make_spec("hf:vit-tiny", 3, (16, 16)), "default")
    save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pytorch_model.bin, which may hold code"):
        build(make_spec(f"hf:{tmp_path}", 3, (16, 16)), "default")


def test_transformers_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentLacks, match=r"hf:vit needs transformers: pip install"):
        make_spec("hf:vit", 3, (16, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {**c, "auto_map": {"AutoModel": "x.py"}}, "config.auto_map is not allowed"),
        (lambda c: {**c, "attn_implementation": "a/b"}, "config.attn_implementation is not"),
        (lambda c: {**c, "hidden_size": 10**9}, "config.hidden_size = 1000000000"),
        (lambda c: {**c, "hidden_size": -1}, "config.hidden_size = -1"),
        (lambda c: {**c, "hidden_act": "a.b"}, "config.hidden_act = 'a.b'"),
        (lambda c: {**c, "num_hidden_layers": 5000}, "5000 layers on 2 x 2 places"),
        (lambda c: {**c, "image_size": 60000}, "4 layers on 7500 x 7500 places"),
        (lambda c: {**c, "hidden_size": 65536, "intermediate_size": 65536, "num_hidden_layers": 99},
         "parameters; expected at most 5,000,000,000"),
        (lambda c: {**c, "hidden_act": "no_such"}, "hf:vit cannot be built with"),
        (lambda c: [], "config is a list, expected a table"),
    ],
)  # fmt: skip
def test_a_bundle_may_give_plain_bounded_settings_of_known_families_only(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    data = make_spec("hf:vit-tiny", 3, (16, 16)).to_json()
    with pytest.raises(UserError) as caught:
        spec_from_json({**data, "kwargs": {"config": change(data["kwargs"]["config"])}}, "here")
    assert message in str(caught.value)


def test_a_bundle_may_not_name_another_family_or_argument() -> None:
    data = make_spec("hf:vit-tiny", 3, (16, 16)).to_json()
    with pytest.raises(UserError, match="here: unknown family hf:bert"):
        spec_from_json({**data, "name": "hf:bert"}, "here")
    with pytest.raises(UserError, match=r"hf:vit has \['config', 'x'\]; expected config alone"):
        spec_from_json({**data, "kwargs": {**data["kwargs"], "x": 1}}, "here")
