"""Loss, error, features and logits of whole sets: modes, statistics, precision."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hardtrain import ImageDataset, build_network
from hardtrain.data.batches import Transform
from hardtrain.runs.run_data import load_data
from hardtrain.training import evaluation, pieces


def make_set(labels, num_classes=3):
    labels = torch.tensor(labels)
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels))
    return ImageDataset("made", "test", images, labels, ("a", "b", "c")[:num_classes], "")


def test_evaluate_counts_errors_by_class_in_evaluation_mode():
    dataset = make_set([0, 0, 1, 1, 1])
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 2, 0], [2, 0, 0]])

    class Fixed(nn.Module):
        modes = []  # noqa: RUF012

        def forward(self, inputs):
            self.modes.append(self.training)
            return logits[inputs.flatten().long()]

    model = Fixed().train()
    found = evaluation.evaluate(model, dataset, Transform((0.0,), (1 / 255,)), batch_size=2)
    assert found.error == pytest.approx(2 / 5)
    assert found.per_class_error == [0.5, pytest.approx(1 / 3), None]
    right, wrong = [math.log(math.e**2 + 2) - s for s in (2, 0)]
    assert found.losses.tolist() == pytest.approx([right, wrong, right, right, wrong])
    assert found.loss == pytest.approx((3 * right + 2 * wrong) / 5)
    assert found.predictions.tolist() == [0, 1, 1, 1, 0]
    assert Fixed.modes == [False] * 3
    assert model.training


def test_evaluate_gives_a_loss_that_is_not_finite_for_logits_that_are_not():
    found = evaluation.evaluate(
        lambda_module(lambda inputs: torch.full((len(inputs), 3), math.nan)),
        make_set([0, 0, 1]),
        Transform((0.0,), (1.0,)),
    )
    assert math.isnan(found.loss)


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


def test_extract_features_gives_the_last_hidden_layer_in_order(tiny_run):
    _, test, _ = load_data(tiny_run())
    model = build_network("cnn_small", 3, 1, image_size=8)
    transform = Transform.of(test)
    found = evaluation.extract_features(model, test, transform, batch_size=7)
    assert torch.allclose(found, model.features(transform(test.images)), atol=1e-6)
    assert model.training


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"batch_size": 7},
        {"precision": "bfloat16"},
        {"batch_size": 10, "batch_statistics": True},
    ],
    ids=["plain", "parts", "bfloat16", "batch"],
)
def test_extract_logits_gives_those_of_the_evaluation_to_the_bit(tiny_run, how):
    _, test, _ = load_data(tiny_run())
    model = build_network("cnn_small_bn", 3, 1, image_size=8)
    for norm in (model.body[1], model.body[4]):
        nn.init.uniform_(norm.running_mean, generator=torch.Generator().manual_seed(0))
    transform = Transform.of(test)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = evaluation.extract_logits(model, test, transform, **how)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert logits.shape == (20, 3)
    assert logits.dtype == torch.float32
    found = evaluation.evaluate(model, test, transform, **how)
    assert torch.equal(logits.argmax(dim=1), found.predictions)
    assert torch.equal(cross_entropy(logits, test.labels, reduction="none"), found.losses)
    others = [{}] if how and how != {"batch_size": 7} else [{"batch_statistics": True}]
    for other in others:
        assert not torch.equal(evaluation.extract_logits(model, test, transform, **other), logits)
    model.eval()
    evaluation.extract_logits(model, test, transform, **how)
    assert not model.training


def test_evaluation_with_batch_statistics_is_that_of_the_training_mode(tiny_run):
    train, test, _ = load_data(tiny_run())
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 3)
    )
    transform = pieces.train_transform(tiny_run(), train)
    found = evaluation.evaluate(model, test, transform, batch_size=10, batch_statistics=True)
    inputs = transform(test.images)
    expected = torch.cat([
        cross_entropy(model(part), labels, reduction="none")
        for part, labels in zip(inputs.split(10), test.labels.split(10), strict=True)
    ])  # fmt: skip
    assert torch.allclose(found.losses, expected.detach(), atol=1e-6)
    running = evaluation.evaluate(model, test, transform, batch_size=10)
    assert not torch.allclose(found.losses, running.losses, atol=1e-3)
    assert model.training
