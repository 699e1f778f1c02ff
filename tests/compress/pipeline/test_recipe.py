"""A recipe is data: read and checked whole before anything runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.errors import UserError
from vcompress.compress import stages
from vcompress.compress.options import Options
from vcompress.compress.pipeline import recipe as recipes
from vcompress.compress.pipeline.recipe import read_recipe, run_recipe

GOOD = """
out = "runs/mine"
[options]
data = "digits"
track = ["tensorboard"]
[[stages]]
stage = "finetune"
model = "r50"
epochs = 3
lr = 1
[[stages]]
stage = "distill"
name = "small"
student = "r18"
alpha = 0.5
[[stages]]
stage = "prune"
macs = 0.5
"""


def read(tmp_path: Path, text: str) -> recipes.Recipe:
    (tmp_path / "mine.toml").write_text(text)
    return read_recipe(tmp_path / "mine.toml")


def test_stages_come_in_order_and_take_the_one_before(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD)
    assert recipe.out == Path("runs/mine")
    assert recipe.options == Options(data="digits", track=("tensorboard",))
    assert [step.name for step in recipe.steps] == ["1-finetune", "small", "3-prune"]
    assert [dict(step.given) for step in recipe.steps] == [
        {"model": "r50"}, {"teacher": "1-finetune", "student": "r18"}, {"model": "small"},
    ]  # fmt: skip
    assert recipe.steps[0].config == stages.load("finetune").Config(epochs=3, lr=1.0)
    assert recipe.steps[1].config == stages.load("distill").Config(alpha=0.5)


def test_the_bundles_go_under_runs_by_the_recipes_name(tmp_path: Path) -> None:
    assert read(tmp_path, '[[stages]]\nstage = "finetune"\nmodel = "r18"').out == Path("runs/mine")


def test_an_earlier_stage_may_be_named(tmp_path: Path) -> None:
    text = GOOD + '[[stages]]\nstage = "distill"\nteacher = "1-finetune"\nstudent = "mnv2"\n'
    assert read(tmp_path, text).steps[3].given == {"teacher": "1-finetune", "student": "mnv2"}


@pytest.mark.parametrize("method", stages.names())
def test_the_config_of_a_stage_comes_back_from_a_recipe(tmp_path: Path, method: str) -> None:
    given: dict[str, Any] = {"dtype": "bf16"} if method == "cast" else {"epochs": 7, "lr": 0.125}
    if method == "prune":
        given["macs"] = 0.5
    config = stages.load(method).Config(**given)
    lines = [f'[[stages]]\nstage = "{method}"']
    lines += [f'{role.name} = "r18"' for role in stages.load(method).roles]
    for key, value in asdict(config).items():
        if value is not None:
            lines.append(f"{key} = {toml(value)}")
    assert read(tmp_path, "\n".join(lines)).steps[0].config == config


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value) if isinstance(value, tuple) else value)


STAGE = '[[stages]]\nstage = "finetune"\nmodel = "r18"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stages"),
        ("stages = []", "needs at least one [[stages]]"),
        ("[[stage]]\n", "unknown key 'stage'. Did you mean 'stages'?"),
        ("[[stages]]\nmodel = 'r18'", "stage 1: the key 'stage' is missing. Known: cast, distill,"),
        ("[[stages]]\nstage = 'finetun'", "unknown stage 'finetun'. Did you mean 'finetune'?"),
        ("[[stages]]\nstage = 'finetune'", "stage 1: finetune needs a model"),
        ("[[stages]]\nstage = 'distill'\nstudent = 'r18'", "distill needs a teacher"),
        (STAGE + "epoch = 3", "stage 1: unknown key 'epoch'. Did you mean 'epochs'?"),
        (STAGE + "epochs = '3'", "stage 1: epochs = '3', expected a whole number"),
        (STAGE + "epochs = -3", "epochs = -3: it must be 0 or more"),
        (STAGE + "optimizer = 'adam'", "optimizer = 'adam', expected one of adamw, sgd"),
        (STAGE + "name = '../up'", "name = '../up'; use letters, digits, - and _"),
        (STAGE + "name = 5", "name = 5"),
        (STAGE + "name = 'a'\n" + STAGE + "name = 'a'", "stage 2: an earlier stage is called 'a'"),
        (
            "[options]\ndat = 'digits'\n" + STAGE,
            "[options]: unknown key 'dat'. Did you mean 'data'",
        ),
        ("[options]\ntrack = 'wandb'\n" + STAGE, "track = 'wandb', expected a list"),
        ("[options]\nseed = -1\n" + STAGE, "seed = -1: it must be 0 or more"),
        ("out = 5\n" + STAGE, "out = 5, expected a text"),
        ("a = = 1", "not valid TOML"),
        ("a = 1\na = 2", "not valid TOML"),
        ("a = " + "[" * 100_000, "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_stage(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: no such recipe"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"b\.toml: not valid TOML"):
        read_recipe(tmp_path / "b.toml")
    with pytest.raises(UserError, match="not valid TOML"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [("demo.toml", "digits"), ("demo_short.toml", "digits"), ("demo_segmentation.toml", "scenes")],
)
def test_the_demos_recipes_are_valid(name: str, data: str) -> None:
    recipe = read_recipe(Path(recipes.__file__).parents[1] / name)
    methods = [step.stage.name for step in recipe.steps]
    assert methods == ["finetune", "distill", "prune", "quantize"]
    assert recipe.options.data == data


def test_steps_get_the_bundles_of_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.compress.pipeline import run, side_by_side

    calls: list[tuple[dict[str, str], Path, Options]] = []

    class FakeBundle:
        def __init__(self, path: Path) -> None:
            self.path = path

    def run_stage(stage: Any, config: Any, given: Any, out: Path, options: Options) -> FakeBundle:
        calls.append((dict(given), out, options))
        return FakeBundle(out)

    compared: list[Any] = []
    monkeypatch.setattr(run, "run_stage", run_stage)
    monkeypatch.setattr(side_by_side, "write_side_by_side", lambda *parts: compared.append(parts))
    recipe = read(tmp_path, GOOD)
    last, report = run_recipe(recipe, tmp_path / "out", resume=True)
    top = tmp_path / "out"
    assert [c[0] for c in calls] == [
        {"model": "r50"},
        {"teacher": str(top / "1-finetune"), "student": "r18"},
        {"model": str(top / "small")},
    ]
    assert [c[1] for c in calls] == [top / "1-finetune", top / "small", top / "3-prune"]
    assert all(c[2].resume and not c[2].overwrite for c in calls)
    assert (last.path, report) == (top / "3-prune", top / "report.html")
    assert [part.path for part in compared[0][:2]] == [top / "1-finetune", top / "3-prune"]


@pytest.mark.parametrize("key", ["resume", "overwrite"])
def test_what_is_said_when_a_recipe_is_run_does_not_stand_in_it(tmp_path: Path, key: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'[options]\n{key} = true\n[[stages]]\nstage = "finetune"\nmodel = "r18"\n')
    with pytest.raises(UserError, match=f"--{key} when the recipe is run"):
        read_recipe(path)


HOSTILE = "raise SystemExit('it ran')\n"


@pytest.mark.parametrize("name", ["evil:net", "http.server:test", "no such:x", "a/b:x", ":x", "x:"])
@pytest.mark.parametrize(
    "text",
    [
        '[[stages]]\nstage = "finetune"\nmodel = "{}"',
        '[[stages]]\nstage = "distill"\nteacher = ["r18", "{}"]\nstudent = "r18"',
        '[[stages]]\nstage = "quantize"\nmodel = "r18"\nteacher = "{}"',
        '[joint]\nteacher = "r18"\nstudent = "{}"\nprune.macs = 0.5',
        '[joint]\nteacher = "{}"\nstudent = "r18"\nprune.macs = 0.5',
    ],
)
def test_a_recipe_runs_no_factory_that_the_user_does_not_name(
    tmp_path: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(HOSTILE)
    monkeypatch.chdir(tmp_path)
    reason = "Python's own" if name.startswith("http") else "is not a module's name"
    if name in ("evil:net", "x:"):
        reason = rf"built by your own factory '{name}'.* give --trust {name}"
    with pytest.raises(UserError, match=reason):
        read(tmp_path, text.replace("{}", name))
    if name == "evil:net":
        assert read_recipe(tmp_path / "mine.toml", "other:net, evil:net").options.trust is not None


def test_a_recipe_runs_no_data_that_the_user_does_not_name(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(HOSTILE)
    text = '[options]\ndata = "evil:data"\n[[stages]]\nstage = "finetune"\nmodel = "r18"'
    with pytest.raises(UserError, match=r"its data are made by your own code .*--trust evil:data"):
        read(tmp_path, text)
    assert read_recipe(tmp_path / "mine.toml", "evil:data").options.data == "evil:data"


def test_a_recipe_does_not_say_whom_to_trust(tmp_path: Path) -> None:
    text = '[options]\ntrust = "evil:net"\n[[stages]]\nstage = "finetune"\nmodel = "r18"'
    with pytest.raises(UserError, match=r"trust is said with --trust when the recipe is run"):
        read(tmp_path, text)
