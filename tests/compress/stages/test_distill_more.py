"""Distillation with features, several teachers, a cache, images without labels, or no teacher."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.bundle import Bundle, Preprocess
from vcompress.bench.errors import UserError
from vcompress.compress import train as training
from vcompress.compress.cli import main
from vcompress.compress.data import Data
from vcompress.compress.resume import load_state
from vcompress.compress.stage import Context
from vcompress.compress.stages import distill
from vcompress.compress.stages.distill import Config
from vcompress.compress.teaching import Teacher

QUICK = {"epochs": 2, "batch_size": 8, "lr": 0.02}


@pytest.fixture
def taught(tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path) -> Context:
    torch.manual_seed(0)
    return Context(tiny_data(augment="affine"), tmp_path / "work", teacher=tiny_nets.batch())


def run(context: Context, net: Callable[[], nn.Module], **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    student = net()
    config = Config(**{**QUICK, **options})
    return student, distill.apply(student, config, context).details


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_stage_finds_the_features_and_leaves_the_student_as_it_was_built(
    taught: Context, tiny_nets: Any
) -> None:
    names = list(tiny_nets.batch().state_dict())
    for method in ("fitnet", "at", "infonce", "srd"):
        student, details = run(taught, tiny_nets.batch, method=method)
        assert details["features"][-1] == ["5", "5"]  # the last of 16 px, which nearly all have
        assert list(student.state_dict()) == names
        assert not any(m._forward_hooks for m in student.modules())
        assert taught.teacher is not None
        assert not any(m._forward_hooks for m in taught.teacher.modules())
        assert details["losses"] == {method: distill.WEIGHTS[method]}


def test_the_projections_are_trained_and_kept_for_a_resume(taught: Context, tiny_nets: Any) -> None:
    run(taught, tiny_nets.batch, losses=("fitnet=1", "kd=0.5"), features=("0=3",))
    state = load_state(taught.workdir / "distill" / "state.safetensors")
    assert list(state.loss) == ["projections.fitnet-0-0.weight"]
    torch.manual_seed(taught.seed)
    start = nn.Conv2d(8, 8, 1, bias=False).weight
    assert state.loss["projections.fitnet-0-0.weight"].shape == (8, 8, 1, 1)
    moved = state.loss["projections.fitnet-0-0.weight"] - start.detach()
    assert 1e-3 < float(moved.abs().max()) < 0.5
    parameters = len(list(tiny_nets.batch().parameters()))
    assert len({key.split(".")[0] for key in state.moments}) == parameters + 1


def test_mixed_precision_gives_nearly_the_same_losses(taught: Context, tiny_nets: Any) -> None:
    losses = tuple(distill.WEIGHTS)
    _, whole = run(taught, tiny_nets.batch, losses=losses, epochs=1)
    student, half = run(taught, tiny_nets.batch, losses=losses, epochs=1, precision="bf16")
    assert half["loss"] != whole["loss"]
    assert half["loss"] == pytest.approx(whole["loss"], rel=0.05)
    assert all(p.dtype == torch.float32 for p in student.parameters())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", ["fitnet", "infonce", "self"])
def test_a_run_that_was_stopped_ends_as_an_undisturbed_one(
    taught: Context, tiny_nets: Any, monkeypatch: pytest.MonkeyPatch, method: str, tmp_path: Path
) -> None:
    if method == "self":
        taught = replace(taught, teacher=None)
    options: dict[str, Any] = {"method": method, "epochs": 3}
    whole, details = run(replace(taught, workdir=tmp_path / "a"), tiny_nets.batch, **options)
    original, calls = training.save_state, []

    def stop(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            raise Killed

    monkeypatch.setattr(training, "save_state", stop)
    with pytest.raises(Killed):
        run(replace(taught, workdir=tmp_path / "b"), tiny_nets.batch, **options)
    monkeypatch.setattr(training, "save_state", original)
    resumed, again = run(
        replace(taught, workdir=tmp_path / "b", resume=True), tiny_nets.batch, **options
    )
    assert same(whole, resumed)
    assert again["loss"] == details["loss"]


def test_a_resume_with_another_teacher_is_refused(taught: Context, tiny_nets: Any) -> None:
    own = Teacher(tiny_nets.batch(), taught.data.preprocess)
    run(replace(taught, teachers=(own,)), tiny_nets.batch)
    other = Teacher(tiny_nets.batch(), taught.data.preprocess)
    with pytest.raises(UserError, match=r"loss.teachers was"):
        run(replace(taught, teachers=(other,), resume=True), tiny_nets.batch)


def test_a_cache_gives_the_losses_of_the_teacher_itself(
    taught: Context, tiny_nets: Any, tmp_path: Path
) -> None:
    folder = str(tmp_path / "cache")
    options = {"losses": ("kd=1", "fitnet=0.5"), "epochs": 3}
    live, details = run(taught, tiny_nets.batch, **options)
    cached, again = run(taught, tiny_nets.batch, cache_teacher=folder, cache_views=0, **options)
    assert again["loss"] == pytest.approx(details["loss"], abs=2e-4)  # features are float16
    assert again["cache"] == {"folder": folder, "views": 3}
    for key, value in live.state_dict().items():
        assert torch.allclose(value, cached.state_dict()[key], atol=5e-3), key


def test_the_teacher_is_asked_once_for_every_view_and_never_again(
    taught: Context, tiny_nets: Any, tmp_path: Path
) -> None:
    class Counting(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            return self.net(x)  # type: ignore[no-any-return]

    asked: list[int] = []
    counting = replace(taught, teacher=Counting(taught.teacher))  # type: ignore[arg-type]
    options = {"cache_teacher": str(tmp_path / "cache"), "cache_views": 2, "epochs": 5}
    first, _ = run(counting, tiny_nets.batch, **options)
    images = len(taught.data.dataset.splits["train"])
    first_time = sum(asked)
    asked.clear()
    second, _ = run(counting, tiny_nets.batch, **options)
    assert first_time - sum(asked) == 2 * images
    assert sum(asked) < images  # its classes, and what the report shows
    assert same(first, second)


def test_a_cache_of_another_teacher_is_refused(
    taught: Context, tiny_nets: Any, tmp_path: Path
) -> None:
    folder = str(tmp_path / "cache")
    run(taught, tiny_nets.batch, cache_teacher=folder, cache_views=1)
    with pytest.raises(UserError, match="made of another teacher"):
        run(replace(taught, teacher=tiny_nets.batch()), tiny_nets.batch, cache_teacher=folder)
    other = replace(taught, data=replace(taught.data, augment="crop-flip"))
    with pytest.raises(UserError, match="other preprocessing, augmentation or seed"):
        run(other, tiny_nets.batch, cache_teacher=folder)
    with pytest.raises(UserError, match="no teacher that could be cached"):
        run(replace(taught, teacher=None), tiny_nets.batch, method="self", cache_teacher=folder)


@pytest.mark.parametrize("cached", [False, True])
def test_images_without_labels_join_the_distillation(
    taught: Context, tiny_nets: Any, image_folder: Callable[..., Path], tmp_path: Path, cached: bool
) -> None:
    folder = image_folder(into="more", here=9, there=9)
    options: dict[str, Any] = {"unlabelled": str(folder), "alpha": 1.0, "epochs": 1}
    if cached:
        options["cache_teacher"] = str(tmp_path / "cache")
    with_them, details = run(taught, tiny_nets.batch, **options)
    assert details["unlabelled"] == 18
    without, _ = run(taught, tiny_nets.batch, alpha=1.0, epochs=1)
    assert not same(with_them, without)
    assert len(taught.data.dataset.labels) == 60  # the data set is not changed


@pytest.mark.parametrize(("name", "message"), [("none", "no such folder"), ("empty", "no images")])
def test_a_folder_without_images_is_named(
    taught: Context, tiny_nets: Any, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--unlabelled .*{name}: {message}"):
        run(taught, tiny_nets.batch, unlabelled=str(tmp_path / name))


def test_several_teachers_teach_by_their_accuracy(taught: Context, tiny_nets: Any) -> None:
    torch.manual_seed(3)
    good, bad = tiny_nets.batch(), tiny_nets.batch()
    context = replace(taught, teacher=None)
    from vcompress.compress.stages import finetune

    finetune.apply(good, finetune.Config(epochs=4, batch_size=6, lr=0.02), context)
    teachers = tuple(Teacher(net, taught.data.preprocess) for net in (good, bad))
    found = {}
    for how in ("mean", "accuracy", "confidence"):
        _, details = run(replace(context, teachers=teachers), tiny_nets.batch, ensemble=how)
        found[how] = details
    weights = found["accuracy"]["ensemble"]["weights"]
    assert weights[0] == 1.0 and weights[0] > weights[1]
    assert weights[1] * 6 == pytest.approx(round(weights[1] * 6))  # of six validation images
    assert len({tuple(details["loss"]) for details in found.values()}) == 3
    assert found["mean"]["teachers"] == 2


def test_a_teacher_with_other_inputs_gets_its_own_images(taught: Context, tiny_nets: Any) -> None:
    class Normalised(nn.Module):
        """The teacher for images that are not normalised, in another order of classes."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - 0.3) / 0.2)[:, [2, 0, 1]]  # type: ignore[no-any-return]

    assert taught.teacher is not None
    plain = replace(taught.data.preprocess, mean=(0.0,) * 3, std=(1.0,) * 3)
    same_one = Teacher(Normalised(taught.teacher), plain, order=(1, 2, 0))
    _, details = run(taught, tiny_nets.batch)
    _, again = run(replace(taught, teacher=None, teachers=(same_one,)), tiny_nets.batch)
    assert again["loss"] == pytest.approx(details["loss"], abs=1e-4)


def test_a_larger_and_a_grey_teacher_are_learnt_from_with_features(
    taught: Context, tiny_nets: Any, tmp_path: Path
) -> None:
    large = Preprocess((24, 24), mean=(0.3,) * 3, std=(0.2,) * 3)
    grey = Preprocess((16, 16), mean=(0.3,), std=(0.2,), channels="L")
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    teachers = Teacher(tiny_nets.batch(), large), Teacher(net, grey)
    context = replace(taught, teacher=None, teachers=teachers)
    options = {"losses": ("kd=1", "at=1", "fitnet=1"), "epochs": 1}
    _, details = run(context, tiny_nets.batch, **options)
    assert details["loss"][0] > 0 and len(details["features"]) >= 2
    _, again = run(
        context, tiny_nets.batch, cache_teacher=str(tmp_path / "c"), cache_views=0, **options
    )
    assert again["loss"] == pytest.approx(details["loss"], abs=1e-3)


def test_without_a_teacher_the_student_learns_from_its_own_average(
    taught: Context, tiny_nets: Any
) -> None:
    alone = replace(taught, teacher=None)
    student, details = run(alone, tiny_nets.batch, method="self", epochs=6, alpha=0.5)
    assert details["teachers"] == 0
    assert training.evaluate(student, alone, Config(), "test") == 1.0
    with pytest.raises(UserError, match="method self has no teacher"):
        run(taught, tiny_nets.batch, method="self")
    # Beside a teacher it is one more loss.
    _, details = run(taught, tiny_nets.batch, losses=("kd=1", "self=0.5"))
    assert details["losses"] == {"kd": 1.0, "self": 0.5}


def test_a_student_larger_than_its_teacher_is_warned_of(
    taught: Context, tiny_nets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="vcompress"):
        run(taught, tiny_nets.group, epochs=1)
        assert "wrong way round" not in caplog.text
        run(replace(taught, teacher=tiny_nets.group()), tiny_nets.batch, epochs=1)
    assert "the student has 0.00 M parameters and its teacher 0.00 M" in caplog.text


def test_features_that_do_not_match_are_refused_with_both_shapes(
    taught: Context, tiny_nets: Any
) -> None:
    with pytest.raises(UserError) as caught:
        run(taught, tiny_nets.batch, method="at", features=("9=2",))
    assert "the student's 9 gives [1, 3] and the teacher's 2 gives [1, 8, 16, 16]" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": ("kdd=1",)}, "unknown loss 'kdd'. Did you mean 'kd'?"),
        ({"losses": ("kd=0",)}, "'kd=0'; expected NAME=WEIGHT, a number above 0"),
        ({"losses": ("kd=x",)}, "'kd=x'; expected NAME=WEIGHT"),
        ({"losses": ("kd=nan",)}, "'kd=nan'"),
        ({"losses": ("kd=1", "kd=2")}, "kd is there twice"),
        ({"losses": ("kd=1",), "method": "at"}, "give one of them"),
        ({"cache_views": -1}, "cache_views = -1"),
        ({"self_decay": 1.0}, "self_decay = 1.0"),
    ],
)
def test_a_bad_option_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Config(**change)
    assert message in str(caught.value)


TWO = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
from safetensors.torch import save_file
from training_script import make_data, make_net
from vcompress.compress.processes import process_state
from vcompress.compress.stage import Context
from vcompress.compress.stages import distill

out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
teacher, student = make_net("batch"), make_net("group")
losses = "kd=1", "fitnet=1", "at=5"
config = distill.Config(epochs=2, batch_size=8, lr=0.02, losses=losses, **options)
found = distill.apply(student, config, Context(make_data(), out, seed=3, teacher=teacher)).details
if process_state().is_main_process:
    save_file({k: v.contiguous() for k, v in student.state_dict().items()}, out / "w.safetensors")
    (out / "found.json").write_text(json.dumps({**found, "world": process_state().num_processes}))
process_state().wait_for_everyone()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_processes_distil_as_one_does(tmp_path: Path) -> None:
    """Projections are trained in both, and each fills its part of the cache."""
    from safetensors.torch import load_file

    (tmp_path / "two.py").write_text(TWO)
    here = str(Path(__file__).parents[1])
    ends = []
    for name, start in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr",
                 "127.0.0.1", "--master_port", str(free_port())]),
    ):  # fmt: skip
        out = tmp_path / name
        out.mkdir()
        options = json.dumps({"cache_teacher": str(out / "cache"), "cache_views": 2})
        done = subprocess.run(
            [sys.executable, *start, str(tmp_path / "two.py"), str(out), options, here],
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads((out / "found.json").read_text())
        ends.append((found, load_file(out / "w.safetensors")))
    (one, alone), (two, together) = ends
    assert (one["world"], two["world"]) == (1, 2)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    for key, value in alone.items():
        assert torch.allclose(together[key], value, atol=1e-4), key


def relabelled(bundle: Path, out: Path, labels: list[str]) -> None:
    """A copy of the bundle that calls its classes otherwise."""
    from vcompress.bench import bundle as bundles

    found = Bundle.open(bundle)
    with bundles.create(
        out, input=found.input, preprocess=found.preprocess, labels=tuple(labels), data=None,
        history=found.history,
    ) as folder:  # fmt: skip
        for name in ("architecture.json", "weights.safetensors", "model.onnx"):
            (folder / name).write_bytes(found.file(name).read_bytes())


OWN = "tiny_nets:batch"


def test_the_command_takes_several_teachers_and_a_table_of_losses(work: Path) -> None:
    names = list(Bundle.open(work / "runs/net").labels)
    relabelled(work / "runs/net", work / "runs/other", [names[1], names[2], names[0]])
    (work / "mine.toml").write_text(
        f"""
[options]
trust = "{OWN}"
data = "images"
[[stages]]
stage = "distill"
teacher = ["runs/net", "runs/other"]
student = "{OWN}"
epochs = 1
batch_size = 8
ensemble = "accuracy"
cache_teacher = "runs/cache"
losses.kd = 1.0
losses.at = 5
"""
    )
    assert main(["run", "mine.toml", "--out", "runs/mine"]) == 0
    bundle = Bundle.open(work / "runs/mine/1-distill")
    entry = bundle.history[-1]
    assert entry["config"]["losses"] == ["kd=1.0", "at=5"]
    assert set(entry["inputs"]) == {"teacher", "teacher-2", "student"}
    # The second one is the first with its classes called otherwise: it is wrong about all.
    assert entry["details"]["ensemble"]["weights"][1] == 0.0
    assert entry["details"]["ensemble"]["weights"][0] > 0.8
    architecture = json.loads(bundle.file("architecture.json").read_text())
    assert architecture["changes"]["shapes"] == {}
    assert sorted(p.name for p in (work / "runs/cache").iterdir()) == ["cache.json", "view-0000"]


def test_the_command_learns_without_a_teacher(work: Path) -> None:
    command = [
        "distill",
        "--student",
        OWN,
        "--data",
        "images",
        "--image-size",
        "16",
        "--epochs",
        "1",
    ]
    assert main([*command, "--method", "self", "--out", "runs/self"]) == 0
    assert set(Bundle.open(work / "runs/self").history[-1]["inputs"]) == {"student"}


def test_a_student_with_other_inputs_than_its_teacher_is_made(work: Path) -> None:
    assert main([
        "distill", "--teacher", "runs/net", "--student", OWN, "--image-size", "8", "--epochs", "1",
        "--method", "fitnet", "--trust", OWN, "--out", "runs/small",
    ]) == 0  # fmt: skip
    assert Bundle.open(work / "runs/small").preprocess.size == (8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student", OWN, "--data", "images"], "distill needs a teacher"),
        (
            ["--student", OWN, "--method", "self", "--teacher", "runs/net", "--trust", OWN],
            "distill takes no teacher with these options",
        ),
        (
            ["--student", OWN, "--teacher", "runs/odd", "--trust", OWN, "--data", "images"],
            "knows 3 classes, the data 3: it lacks",
        ),
        (
            ["--student", OWN, "--teacher", "runs/net", "--trust", OWN, "--losses", "kd=1", "ta=2"],
            "unknown loss 'ta'. Did you mean 'at'?",
        ),
    ],
)
def test_a_mistake_is_one_message(
    work: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    names = list(Bundle.open(work / "runs/net").labels)
    relabelled(work / "runs/net", work / "runs/odd", ["violet", *names[1:]])
    assert main(["distill", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
