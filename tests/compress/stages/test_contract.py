"""What a stage says of itself: its name, its help, the networks that it takes."""

from __future__ import annotations

from typing import Any

import pytest

from vcompress.bench.errors import UserError
from vcompress.compress import stages
from vcompress.compress.stages import distill, quantize
from vcompress.compress.stages.contract import Kind, Role, Stage

TEACHER, STUDENT = distill.STAGE.roles


@pytest.mark.parametrize("name", stages.names())
def test_a_stage_is_named_by_its_file_and_explained_by_its_docstring(name: str) -> None:
    stage = stages.load(name)
    assert stage.name == name
    assert stage.help.splitlines()[0].endswith(".") or ":" in stage.help.splitlines()[0]
    assert stage.Config.__module__.endswith(f"stages.{name}")
    assert stage.changed.kind in (Kind.FRESH, Kind.TRAINED)


def test_each_network_that_was_given_has_its_role() -> None:
    given = {"student": "r18", "teacher": "r50", "teacher-2": "r101"}
    roles = distill.STAGE.assigned(distill.Config(), given)
    assert roles == {"teacher": TEACHER, "teacher-2": TEACHER, "student": STUDENT}
    assert list(roles)[-1] == "student"
    assert TEACHER.numbered(["r50", "r101"]) == {"teacher": "r50", "teacher-2": "r101"}


@pytest.mark.parametrize(
    ("stage", "options", "given", "message"),
    [
        ("distill", {}, {"student": "r18"}, "distill needs a teacher: give a model's name"),
        ("distill", {}, {"teacher": "r50"}, "distill needs a student: give a model's name"),
        ("distill", {"method": "self"}, {"teacher": "r50", "student": "r18"},
         "distill takes no teacher with these options"),
        ("quantize", {}, {"model": "r18", "teacher-2": "r50"}, "quantize takes no teacher-2"),
        ("finetune", {}, {"model": "r18", "teacher": "r50"}, "finetune takes no teacher"),
    ],
)  # fmt: skip
def test_a_network_that_is_missing_or_of_no_use_is_named(
    stage: str, options: dict[str, Any], given: dict[str, str], message: str
) -> None:
    found = stages.load(stage)
    with pytest.raises(UserError) as caught:
        found.assigned(found.Config(**options), given)
    assert message in str(caught.value)


def test_an_optional_network_may_be_left_out() -> None:
    roles = quantize.STAGE.assigned(quantize.Config(), {"model": "r18"})
    assert roles == {"model": Role("model", Kind.TRAINED, changed=True)}


def test_the_teacher_of_the_history_is_wanted_by_training_with_one_alone() -> None:
    wants = quantize.STAGE.inherits_teacher
    assert wants(quantize.Config())
    assert not wants(quantize.Config(method="ptq"))
    assert not wants(quantize.Config(alpha=0.0))
    assert not stages.load("prune").inherits_teacher(None)


def test_a_stage_changes_exactly_one_network() -> None:
    for roles in ((TEACHER,), (STUDENT, STUDENT)):
        with pytest.raises(ValueError, match="stage distill: exactly one role is changed"):
            Stage(distill.Config, distill.apply, roles)


def test_a_file_that_is_no_stage_is_unknown() -> None:
    with pytest.raises(UserError, match="unknown stage 'contract'"):
        stages.load("contract")
