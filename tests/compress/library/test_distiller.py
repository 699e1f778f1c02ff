"""A student's losses in a user's own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress import distiller
from vcompress.compress.distillation import losses


@pytest.fixture
def batch(loader: Callable[..., list[Any]]) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = loader()[0]
    return found


@pytest.mark.parametrize("gives", ["tensor", "dict", "tuple"])
def test_it_is_hintons_loss_beside_cross_entropy(
    net: Callable[..., nn.Module], batch: tuple[Tensor, Tensor], gives: str
) -> None:
    student, teacher = net(gives).eval(), net(gives).train()
    with torch.no_grad():
        teacher.head.weight.mul_(3)
    output = "logits" if gives == "dict" else None
    distil = distiller(student, teacher, alpha=0.6, temperature=2.0, output=output)
    found = distil(student(batch[0]), *batch)

    def logits(model: nn.Module) -> Tensor:
        out = model.eval()(batch[0])
        chosen: Tensor = out["logits"] if gives == "dict" else out[0] if gives == "tuple" else out
        return chosen

    ours = logits(student)
    assert teacher.training  # it was asked in evaluation, and is in training again
    soft = losses.kd(ours, logits(teacher), 2.0)
    torch.testing.assert_close(found, 0.6 * soft + 0.4 * F.cross_entropy(ours, batch[1]))


def test_without_targets_the_teacher_is_all(
    net: Callable[..., nn.Module], batch: tuple[Tensor, Tensor]
) -> None:
    student, teacher = net().eval(), net("dict").eval()
    with torch.no_grad():
        teacher.head.bias.add_(torch.tensor([1.0, 0.0, 0.0]))
    distil = distiller(student, teacher, alpha=0.5, output=None)
    ours, theirs = student(batch[0]), teacher(batch[0])["aux"]
    torch.testing.assert_close(distil(ours, batch[0]), 0.5 * losses.kd(ours, theirs, 4.0))


@pytest.mark.parametrize(
    ("task", "targets"),
    [("multilabel", torch.ones(16, 3)), ("regression", torch.linspace(0, 9, 48).view(16, 3))],
)
def test_every_task_has_losses(
    net: Callable[..., nn.Module], batch: tuple[Tensor, Tensor], task: str, targets: Tensor
) -> None:
    student, teacher = net(), net()
    distil = distiller(student, teacher, task=task, targets=targets)
    outputs = student.eval()(batch[0])
    alone = distil(outputs, batch[0])
    assert float(alone) == pytest.approx(0.0, abs=1e-6)  # they are the same
    assert float(distil(outputs, batch[0], targets)) > 0.01


def test_a_loss_of_ones_own_takes_the_place_of_the_tasks(
    net: Callable[..., nn.Module], batch: tuple[Tensor, Tensor]
) -> None:
    student, teacher = net().eval(), net().eval()
    weights = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    distil = distiller(student, teacher, alpha=0.25, loss=weights)
    ours = student(batch[0])
    torch.testing.assert_close(distil(ours, *batch), 0.75 * weights(ours, batch[1]))
    with pytest.raises(UserError, match="needs them"):
        distil(ours, batch[0])


def test_features_are_compared_until_it_is_closed(
    net: Callable[..., nn.Module], batch: tuple[Tensor, Tensor], example: Tensor
) -> None:
    student, teacher = net().eval(), net().eval()
    with torch.no_grad():
        teacher.body[3].weight.mul_(0.5)
    with distiller(
        student, teacher, method={"fitnet": 1.0}, alpha=1.0, example=example,
        features=["body.3=body.3"],
    ) as distil:  # fmt: skip
        projections = list(distil.parameters())
        assert [tuple(p.shape) for p in projections] == [(16, 16, 1, 1)]
        loss = distil(student(batch[0]), *batch)
        loss.backward()
        assert projections[0].grad is not None
        assert float(loss.detach()) > 0
        assert student.body[3]._forward_hooks
    assert not student.body[3]._forward_hooks
    assert not teacher.body[3]._forward_hooks


def test_several_teachers_are_averaged_and_self_needs_none(
    net: Callable[..., nn.Module], batch: tuple[Tensor, Tensor]
) -> None:
    student, other = net().eval(), net().eval()
    with torch.no_grad():
        other.head.bias.add_(torch.tensor([2.0, 0.0, 0.0]))
    ours = student(batch[0])
    one = distiller(student, other, alpha=1.0)(ours, *batch)
    both = distiller(student, [student, other], alpha=1.0)(ours, *batch)
    assert 0 < float(both.detach()) < float(one.detach())
    alone = distiller(student, None, method="self", alpha=1.0)
    assert float(alone(ours, *batch).detach()) == pytest.approx(0.0, abs=1e-6)


def test_teachers_of_several_inputs_get_what_the_student_got() -> None:
    class Two(nn.Module):
        def forward(self, image: Tensor, more: Tensor) -> Tensor:
            return (image + more).flatten(1)[:, :3]

    student = Two()
    distil = distiller(student, Two(), alpha=1.0)
    images = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2)
    given = {"image": images[0], "more": images[1]}
    assert float(distil(student(*images) + 1.0, images)) == pytest.approx(0.0, abs=1e-6)
    assert float(distil(student(**given) * 2, given)) > 0.01


def test_it_teaches(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], fit: Callable[..., nn.Module]
) -> None:
    teacher, student = fit(net(), loader()), net()
    distil = distiller(student, teacher, alpha=1.0)
    fit(student, loader(), loss=lambda found, images, labels: distil(found, images))
    images = torch.cat([x for x, _ in loader()])
    same = (student(images).argmax(1) == teacher(images).argmax(1)).float().mean()
    assert float(same) > 0.9


def test_what_does_not_fit_is_one_message(
    net: Callable[..., nn.Module], batch: tuple[Tensor, Tensor], example: Tensor
) -> None:
    student, teacher = net(), net()
    with pytest.raises(UserError, match=r"method = 'kl'.*classification is distilled by kd"):
        distiller(student, teacher, method="kl")
    with pytest.raises(UserError, match="'dkd': multilabel is distilled by kd"):
        distiller(student, teacher, method="dkd", task="multilabel")
    with pytest.raises(UserError, match="fitnet: give example="):
        distiller(student, teacher, method="fitnet")
    with pytest.raises(UserError, match="kd needs a teacher"):
        distiller(student, None)
    with pytest.raises(UserError, match="method self has no teacher"):
        distiller(student, teacher, method="self")
    with pytest.raises(UserError, match=r"student gives \[1, 3\] and the teacher \[1, 4\]"):
        distiller(student, net(classes=4), example=example)
    with pytest.raises(UserError, match="alpha = 2"):
        distiller(student, teacher, alpha=2)
    with pytest.raises(UserError, match="'kd' has weight -1"):
        distiller(student, teacher, method={"kd": -1.0})
    with pytest.raises(UserError, match="temperature = 0"):
        distiller(student, teacher, temperature=0)
    with pytest.raises(UserError, match="regression: give the training targets"):
        distiller(student, teacher, task="regression")
    with pytest.raises(UserError, match="unknown task"):
        distiller(student, teacher, task="detection")
    with pytest.raises(UserError, match=r"The loss is \[16\]; expected a scalar"):
        distil = distiller(student, teacher, loss=nn.CrossEntropyLoss(reduction="none"))
        distil(student(batch[0]), *batch)
    with pytest.raises(UserError, match="targets go from 0 to 7, and the student has 3 outputs"):
        distiller(student, teacher)(student(batch[0]), batch[0], torch.tensor([0] * 15 + [7]))
    with pytest.raises(UserError, match=r"targets: got 5 for 16 outputs of the student"):
        distiller(net(), net())(net()(batch[0]), batch[0], batch[1][:5])
    with pytest.raises(UserError, match=r"targets: got \[16\] float32 for outputs \[16, 3\]"):
        distiller(net(), net())(net()(batch[0]), batch[0], batch[1].float())
