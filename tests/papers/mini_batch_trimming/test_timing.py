"""What is timed, and where its ratio goes."""

import numpy as np
import pytest
import torch

from hardtrain.papers.mini_batch_trimming import timing


@pytest.fixture
def measured(monkeypatch):
    """The ratios count the trimmed steps; each step ran once."""
    gradients, sent_back = [], []
    trimmed_backward = timing.trimmed_backward

    class Recorded(torch.optim.SGD):
        def step(self):
            weights = [w for group in self.param_groups for w in group["params"]]
            gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))

    def ratios_by_round(plain, others, repetitions, **options):
        for step in (plain, *others):
            step()
        return len(gradients) + np.arange(len(others))

    def recorded_backward(model, inputs, targets, keep):
        sent_back.append(keep)
        trimmed_backward(model, inputs, targets, keep)

    monkeypatch.setattr(timing, "ratios_by_round", ratios_by_round)
    monkeypatch.setattr(timing, "trimmed_backward", recorded_backward)
    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    return timing.trimming_step_times(keeps=(1.0, 0.2), device="cpu"), gradients, sent_back


def test_trimming_step_times_give_each_ratio_its_place(measured):
    found = measured[0]
    assert found["keeps"].tolist() == [1.0, 0.2]
    assert found["trim"].tolist() == [3, 4]
    assert found["trimmed_backward"].tolist() == [6, 7]
    assert found["trim_batch_norm"].tolist() == [9, 10]
    assert "torch" in str(found["machine"])


def test_trimming_step_times_time_what_they_say(measured):
    _, gradients, sent_back = measured
    assert sent_back == [1.0, 0.2]
    (plain, whole, part), (_, whole_again, part_again), (plain_norm, whole_norm, part_norm) = (
        gradients[:3],
        gradients[3:6],
        gradients[6:],
    )
    torch.testing.assert_close(whole, plain)
    torch.testing.assert_close(whole_again, plain)
    torch.testing.assert_close(part_again, part, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole_norm, plain_norm, atol=1e-5, rtol=1e-4)
    assert (part - plain).norm() > 0.1 * plain.norm()
    assert (part_norm - plain_norm).norm() > 0.1 * plain_norm.norm()
    assert len(plain_norm) > len(plain)  # the network with batch-norm
