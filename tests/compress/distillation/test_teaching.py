"""Several teachers made one, and a loss with parameters and teachers of its own."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.errors import UserError
from vcompress.compress.data.loader import Samples
from vcompress.compress.distillation import losses
from vcompress.compress.distillation.features import captured, find_pairs
from vcompress.compress.distillation.teaching import (
    Answer,
    Lesson,
    LossOptions,
    TaughtLoss,
    Teacher,
    ensemble,
    live,
    order_of,
)
from vcompress.compress.distillation.terms import ON_FEATURES, WEIGHTS
from vcompress.compress.tasks.classification import Classification

TASK = Classification()

SIZE = Preprocess((16, 16))
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SAMPLES = Samples(torch.arange(6), 0, ())
HOOKS = ExitStack()


def net(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 3),
    )  # fmt: skip


def taught(terms: dict[str, float], **options: Any) -> tuple[TaughtLoss, nn.Module, nn.Module]:
    """A loss, its student (4 channels) and its teacher (8); the hooks stay for the test."""
    student, teacher = net(4), net(8).eval()
    pairs = find_pairs(student, IMAGES[:1], teacher, IMAGES[:1])
    theirs = HOOKS.enter_context(captured(teacher, [p.teacher.name for p in pairs]))
    ours = HOOKS.enter_context(captured(student, [p.student.name for p in pairs]))
    teachers = [Teacher(teacher, SIZE)]
    ask = live(teachers, [theirs], [pairs], ())
    own = {name: options.pop(name) for name in ("seed", "labelled") if name in options}
    lesson = Lesson(student=student, teachers=teachers, ask=ask, pairs=[pairs], seen=ours)
    chosen = LossOptions(terms=terms, **{"alpha": 0.5, "temperature": 2.0, **options})
    return TaughtLoss(TASK, chosen, lesson, **own), student, teacher


def logits_of(*probabilities: list[float]) -> Tensor:
    return torch.tensor([list(probabilities)]).log()


def test_the_mean_of_several_is_the_mean_of_their_softened_distributions() -> None:
    two = torch.cat([logits_of([0.8, 0.2]), logits_of([0.4, 0.6])])
    found = F.softmax(ensemble(TASK, two, "mean", [1, 1], 1.0), dim=1)
    assert torch.allclose(found, torch.tensor([[0.6, 0.4]]))
    soft = [math.sqrt(p) for p in (0.8, 0.2, 0.4, 0.6)]  # at T = 2
    top = (soft[0] / (soft[0] + soft[1]) + soft[2] / (soft[2] + soft[3])) / 2
    found = F.softmax(ensemble(TASK, two, "mean", [1, 1], 2.0) / 2.0, dim=1)
    assert float(found[0, 0]) == pytest.approx(top, rel=1e-5)


def test_accuracies_weigh_the_teachers() -> None:
    two = torch.cat([logits_of([0.8, 0.2]), logits_of([0.4, 0.6])])
    found = F.softmax(ensemble(TASK, two, "accuracy", [0.9, 0.6], 1.0), dim=1)
    assert float(found[0, 0]) == pytest.approx((0.9 * 0.8 + 0.6 * 0.4) / 1.5, rel=1e-5)


def test_confidence_weighs_them_for_each_sample() -> None:
    sure, unsure = [0.9, 0.1], [0.5, 0.5]
    two = torch.cat([logits_of(sure, unsure), logits_of(unsure, [0.2, 0.8])])
    found = F.softmax(ensemble(TASK, two, "confidence", [1, 1], 1.0), dim=1)
    # A uniform distribution says nothing, so it has no weight.
    assert torch.allclose(found, torch.tensor([[0.9, 0.1], [0.2, 0.8]]), atol=1e-3)
    certain = [
        1 - (-(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)) for p in (0.9, 0.7)
    ]
    two = torch.cat([logits_of([0.9, 0.1]), logits_of([0.3, 0.7])])
    found = F.softmax(ensemble(TASK, two, "confidence", [1, 1], 1.0), dim=1)
    expected = (certain[0] * 0.9 + certain[1] * 0.3) / sum(certain)
    assert float(found[0, 0]) == pytest.approx(expected, rel=1e-4)
    both = torch.cat([logits_of(unsure), logits_of(unsure)])
    assert torch.allclose(
        F.softmax(ensemble(TASK, both, "confidence", [1, 1], 1.0), 1), both[0].exp()
    )


def test_one_teacher_is_left_as_it_is() -> None:
    one = torch.randn(1, 4, 3)
    assert torch.equal(ensemble(TASK, one, "confidence", [0.3], 4.0), one[0])


def test_losses_are_added_by_their_weights_beside_the_labels() -> None:
    loss, student, teacher = taught({"kd": 0.5, "dist": 2.0}, alpha=0.3)
    with torch.no_grad():
        ours, theirs = student(IMAGES), teacher(IMAGES)
        soft = 0.5 * losses.kd(ours, theirs, 2.0) + 2 * losses.dist(ours, theirs, 2.0)
        expected = 0.3 * soft + 0.7 * F.cross_entropy(ours, LABELS)
        assert float(loss(ours, IMAGES, LABELS, SAMPLES)) == pytest.approx(
            float(expected), rel=1e-5
        )


def test_images_without_a_label_count_in_the_distillation_alone() -> None:
    loss, student, teacher = taught({"kd": 1.0}, alpha=0.5, labelled=0.5)
    ours = student(IMAGES).detach()
    some = torch.tensor([0, -1, -1, 0, -1, 2])
    with torch.no_grad():
        soft = losses.kd(ours, teacher(IMAGES), 2.0)
        known = some >= 0
        hard = F.cross_entropy(ours[known], some[known])  # half of them are labelled
        found = loss(ours, IMAGES, some, SAMPLES)
        assert float(found) == pytest.approx(float(0.5 * soft + 0.5 * hard), rel=1e-5)
        nobody = loss(ours, IMAGES, torch.full((6,), -1), SAMPLES)
        assert float(nobody) == pytest.approx(float(0.5 * soft), rel=1e-5)


def test_dkd_takes_the_teachers_class_where_no_label_is_known() -> None:
    loss, student, teacher = taught({"dkd": 1.0}, alpha=1.0)
    with torch.no_grad():
        ours, theirs = student(IMAGES), teacher(IMAGES)
        found = loss(ours, IMAGES, torch.full((6,), -1), SAMPLES)
        assert float(found) == pytest.approx(
            float(losses.dkd(ours, theirs, theirs.argmax(1), 2.0)), rel=1e-3
        )


@pytest.mark.parametrize("name", ON_FEATURES)
def test_every_loss_on_features_trains_the_student_below_them(name: str) -> None:
    loss, student, teacher = taught({name: 1.0}, alpha=1.0)
    loss(student(IMAGES), IMAGES, LABELS, SAMPLES).backward()
    grad = student[0].weight.grad  # type: ignore[union-attr]
    assert isinstance(grad, Tensor) and float(grad.abs().max()) > 1e-6
    assert not student[6].weight.grad.any()  # type: ignore[union-attr]
    assert all(p.grad is None for p in teacher.parameters())
    shapes = {k: list(p.shape) for k, p in loss.named_parameters()}
    assert shapes == {
        "fitnet": {
            "projections.fitnet-0-0.weight": [8, 4, 1, 1],
            "projections.fitnet-0-1.weight": [16, 8, 1, 1],
        },
        "at": {}, "skd": {},
        "infonce": {
            "projections.infonce-0-1.weight": [128, 8], "projections.infonce-0-1.bias": [128],
            "projections.infonce-0-1-teacher.weight": [128, 16],
            "projections.infonce-0-1-teacher.bias": [128],
        },
        "srd": {"projections.srd-0-1.weight": [16, 8], "projections.srd-0-1.bias": [16]},
    }[name]  # fmt: skip
    assert all(p.grad is not None for p in loss.parameters())


class Tokens(nn.Module):
    """Patches of 4 px and a class token, as a ViT hands them on."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.start = nn.Parameter(torch.zeros(1, 1, 12))
        self.blocks = nn.Sequential(*(nn.Linear(12, 12) for _ in range(8)))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.start.expand(len(x), -1, -1), x], 1))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("turned", [False, True])
def test_a_cnn_learns_the_tokens_of_a_vit_and_the_other_way_round(turned: bool) -> None:
    torch.manual_seed(0)
    student, teacher = (Tokens(), net(8)) if turned else (net(4), Tokens())
    pairs = find_pairs(student, IMAGES[:1], teacher.eval(), IMAGES[:1])
    theirs = HOOKS.enter_context(captured(teacher, [p.teacher.name for p in pairs]))
    ours = HOOKS.enter_context(captured(student, [p.student.name for p in pairs]))
    teachers = [Teacher(teacher, SIZE)]
    ask = live(teachers, [theirs], [pairs], ())
    loss = TaughtLoss(
        TASK, LossOptions(terms=dict.fromkeys(ON_FEATURES, 1.0), alpha=1.0, temperature=1.0),
        Lesson(student=student, teachers=teachers, ask=ask, pairs=[pairs], seen=ours),
    )  # fmt: skip
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], lr=0.01)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(student(IMAGES), IMAGES, LABELS, SAMPLES)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.7 * values[0]


def test_a_student_with_its_teachers_features_has_no_attention_loss() -> None:
    teacher = net(8).eval()
    pairs = find_pairs(teacher, IMAGES[:1], teacher, IMAGES[:1])
    seen = HOOKS.enter_context(captured(teacher, [p.teacher.name for p in pairs]))
    ask = live([Teacher(teacher, SIZE)], [seen], [pairs], ())
    loss = TaughtLoss(
        TASK, LossOptions(terms={"at": 1.0}, alpha=1.0, temperature=1.0),
        Lesson(
            student=teacher, teachers=[Teacher(teacher, SIZE)], ask=ask, pairs=[pairs], seen=seen
        ),
    )  # fmt: skip
    found = loss(teacher(IMAGES), IMAGES, LABELS, SAMPLES)
    assert float(found.detach()) == pytest.approx(0.0, abs=1e-6)


def test_the_projections_are_the_same_for_a_seed_and_no_random_number_is_used_up() -> None:
    torch.manual_seed(5)
    after = torch.rand(1)
    first = taught({"fitnet": 1.0}, seed=3)[0].state_dict()
    again = taught({"fitnet": 1.0}, seed=3)[0].state_dict()
    other = taught({"fitnet": 1.0}, seed=4)[0].state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)
    student = net(4)
    torch.manual_seed(5)
    alone = LossOptions(terms={"self": 1.0}, alpha=1.0, temperature=1.0)
    TaughtLoss(TASK, alone, Lesson(student=student))
    assert torch.equal(torch.rand(1), after)


def test_teachers_are_in_no_state_of_the_loss() -> None:
    loss, _, teacher = taught({"kd": 1.0})
    assert not loss.state_dict() and not list(loss.parameters())
    teacher.train()
    loss.train()
    loss(torch.zeros(6, 3), IMAGES, LABELS, SAMPLES)
    assert not teacher.training


def test_the_average_of_the_student_teaches_it_and_follows_it() -> None:
    student = net(4)
    with torch.no_grad():
        start = student[0].weight.clone()  # type: ignore[union-attr]
        alone = LossOptions(terms={"self": 1.0}, alpha=1.0, temperature=2.0, self_decay=0.5)
        loss = TaughtLoss(TASK, alone, Lesson(student=student))
        student[0].weight.add_(1.0)  # type: ignore[union-attr]
        found = loss(student(IMAGES), IMAGES, LABELS, SAMPLES)
        # Young averages forget faster: 2 / 11 is kept, then 3 / 12, and half from the eighth on.
        mean = loss.average[0].weight  # type: ignore[index]
        assert torch.allclose(mean, start + 9 / 11, atol=1e-6)  # type: ignore[arg-type]
        expected = losses.kd(student(IMAGES), loss.average(IMAGES), 2.0)  # type: ignore[operator]
        assert float(found) == pytest.approx(float(expected), rel=1e-4)
        loss(student(IMAGES), IMAGES, LABELS, SAMPLES)
        assert torch.allclose(mean, start + 1 - 2 / 11 * 3 / 12, atol=1e-6)  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in loss.parameters())
    assert "average.0.weight" in loss.state_dict() and "updates" in loss.state_dict()


def test_classes_are_put_in_order_by_their_names() -> None:
    order = order_of(["cat", "dog", "ant"], ["ant", "cat", "dog"], "t")
    assert order == (2, 0, 1)
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert Teacher(nn.Identity(), SIZE, order).in_order(logits).tolist() == [[3.0, 1.0, 2.0]]
    assert order_of(["a", "b"], ["a", "b"], "t") is None
    assert Teacher(nn.Identity(), SIZE).in_order(logits) is logits


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["ant", "bee"],
            "the teacher t knows 2 classes, the data 3: it lacks cat, dog and the data",
        ),
        (["ant", "cat", "cow"], "it lacks dog and the data have no cow"),
        (
            ["ant", "cat", "dog", "eel"],
            "the teacher t knows 4 classes, the data 3: the data have no",
        ),
    ],
)
def test_a_teacher_of_another_label_set_is_refused(labels: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        order_of(labels, ["ant", "cat", "dog"], "t")
    assert message in str(caught.value)


def test_a_teacher_takes_its_own_view_of_the_image() -> None:
    teacher, other = net(8).eval(), Preprocess((16, 16), mean=(0.0,) * 3)
    asked = live([Teacher(teacher, other), Teacher(teacher, SIZE)], [{}, {}], [[], []], (other,))
    own = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        answer = asked(IMAGES, Samples(torch.arange(6), 0, (own,)))
        assert torch.allclose(answer.logits[0], teacher(own), atol=1e-6)
        assert torch.allclose(answer.logits[1], teacher(IMAGES), atol=1e-6)
    assert isinstance(answer, Answer) and answer.logits.shape == (2, 6, 3)


def test_every_loss_has_a_weight_of_its_own() -> None:
    assert set(WEIGHTS) == {*losses.ON_LOGITS, "cwd", *ON_FEATURES, "self"}
