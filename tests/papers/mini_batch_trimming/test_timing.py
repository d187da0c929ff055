"""What is timed, and where its ratio goes."""

import pytest
import torch

from hardtrain.papers.mini_batch_trimming import timing


@pytest.fixture
def measured(monkeypatch):
    """The ratios are 10 x the group's number + the part kept; each step ran once."""
    groups, gradients = [], []

    class Recorded(torch.optim.SGD):
        def step(self):
            weights = [w for group in self.param_groups for w in group["params"]]
            gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))

    def relative_times(steps, repetitions, **options):
        for step in steps.values():
            step()
        groups.append(list(steps))
        return {keep: 10 * len(groups) + (keep if keep != "plain" else 0) for keep in steps}

    monkeypatch.setattr(timing, "relative_times", relative_times)
    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    return timing.trimming_step_times(keeps=(1.0, 0.2), device="cpu"), groups, gradients


def test_trimming_step_times_give_each_ratio_its_place(measured):
    found, groups, _ = measured
    assert groups == [["plain", 1.0, 0.2]] * 3
    assert found["keeps"].tolist() == [1.0, 0.2]
    assert found["trim"].tolist() == [11.0, 10.2]
    assert found["trimmed_backward"].tolist() == [21.0, 20.2]
    assert found["trim_batch_norm"].tolist() == [31.0, 30.2]
    assert "torch" in str(found["machine"])


def test_trimming_step_times_time_what_they_say(measured):
    gradients = measured[2]
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
