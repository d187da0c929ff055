"""What each strategy does under DistributedDataParallel: two processes with gloo, half a batch
each, against one process with the whole batch. The network has no batch-norm, which would
normalise each half by itself.
"""

import multiprocessing
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softmax

from hardtrain import (
    GradientNoise,
    HardBatchSampler,
    PredictionHistory,
    class_conditional_mmd,
    mmd,
    trim,
    trimmed_backward,
)

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not torch.distributed.is_gloo_available(),
    reason="needs gloo and a fork server",
)
B, D, K, KEEP = 16, 6, 3, 0.25
PATIENCE = 120


class Network(nn.Module):
    """Gives features and logits."""

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Sequential(nn.Linear(D, 8), nn.Tanh()), nn.Linear(8, K)

    def forward(self, inputs):
        features = self.body(inputs)
        return features, self.classifier(features)


def network():
    torch.manual_seed(0)
    return Network()


def samples(num=B, seed=1):
    own = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, D, generator=own)
    inputs[: num // 2] *= 3  # so that the hardest are not half and half
    return inputs, torch.arange(num) % K


def losses_of(model, inputs, targets):
    return cross_entropy(model(inputs)[1], targets, reduction="none")


def gathered(values):
    """The line that a user writes: of all ranks, in the order of ranks, with gradients."""
    return torch.cat(torch.distributed.nn.functional.all_gather(values))


def gradients(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def matching_loss(model, first, second, together=lambda values: values):
    """Plain loss and both matches, of ``(inputs, targets)`` twice; ``together`` gathers."""
    features, logits = model(torch.cat([first[0], second[0]]))
    x, y = map(together, features.split([len(first[0]), len(second[0])]))
    labels = together(first[1]), together(second[1])
    loss = cross_entropy(logits, torch.cat([first[1], second[1]]))
    return loss + mmd(x, y) + class_conditional_mmd(x, labels[0], y, labels[1], K)


def noisy_steps(model, part, generator):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    GradientNoise(optimizer, alpha=0.01, generator=generator)
    inputs, targets = (values[part] for values in samples())
    for _ in range(3):
        optimizer.zero_grad()
        losses_of(model, inputs, targets).mean().backward()
        optimizer.step()


def hard_batch_steps(model, part, mean=lambda loss: loss):
    """Eight updates; gives the batches that were chosen."""
    inputs, targets = samples(48)
    sampler = HardBatchSampler(48, B, 0.7, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    chosen = []
    while len(chosen) < 8:
        for batch in sampler:
            indices = batch[part]
            loss = losses_of(model, inputs[indices], targets[indices]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sampler.update(batch, mean(loss.detach()))
            chosen.append(batch)
    return chosen


def note(history, model, part, together=lambda values: values):
    inputs, targets = (values[part] for values in samples())
    with torch.no_grad():
        probabilities = softmax(model(inputs)[1], 1)[range(len(targets)), targets]
    for _ in range(2):
        history.update(together(torch.arange(B)[part]), together(probabilities))


def work(rank, folder):
    """What a rank does; its answers by name go to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    part = slice(rank * B // 2, (rank + 1) * B // 2)
    inputs, targets = (values[part] for values in samples())
    answers = {}

    def parallel():
        return nn.parallel.DistributedDataParallel(network())

    for name, reduced in (
        ("trim per rank", lambda losses: trim(losses, KEEP)),
        ("trim over ranks", lambda losses: trim(gathered(losses), KEEP)),
    ):
        model = parallel()
        reduced(losses_of(model, inputs, targets)).backward()
        answers[name] = gradients(model)

    model = parallel()
    by_logits = {"criterion": lambda out, y: cross_entropy(out[1], y, reduction="none")}
    trimmed_backward(model, inputs, targets, KEEP, **by_logits)
    answers["trimmed backward"] = gradients(model)

    model = parallel()
    second = tuple(values[part] for values in samples(seed=2))
    matching_loss(model, (inputs, targets), second, gathered).backward()
    answers["matching"] = gradients(model)

    model = parallel()
    noisy_steps(model, part, torch.Generator().manual_seed(7))
    answers["noise"] = weights(model)
    try:
        noisy_steps(parallel(), part, torch.Generator().manual_seed(rank))
    except ValueError as error:
        answers["unequal generators"] = str(error)

    history = PredictionHistory(B)
    note(history, parallel(), part, gathered)
    answers["history"] = history.state_dict()

    def mean(loss):
        torch.distributed.all_reduce(loss)
        return loss / 2

    model = parallel()
    answers["hard batches"] = hard_batch_steps(model, part, mean), weights(model)
    torch.distributed.destroy_process_group()
    (folder / f"answers {rank}").write_bytes(pickle.dumps(answers))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The answers of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "hardtrain.runs.sweep", "torch._dynamo"])
    processes = [context.Process(target=work, args=(rank, folder)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [pickle.loads((folder / f"answers {rank}").read_bytes()) for rank in (0, 1)]


def assert_close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def both(ranks, name):
    """What both ranks have, bit for bit."""
    first, second = (answers[name] for answers in ranks)
    assert torch.equal(first, second)
    return first


def test_trimming_in_plain_use_is_of_each_ranks_samples(ranks):
    model = network()
    halves = [values.split(B // 2) for values in samples()]
    trimmed = [trim(losses_of(model, *half), KEEP) for half in zip(*halves, strict=True)]
    torch.stack(trimmed).mean().backward()
    for name in ("trim per rank", "trimmed backward"):
        assert_close(both(ranks, name), gradients(model))


def test_trimming_of_gathered_losses_is_that_of_the_whole_batch(ranks):
    model = network()
    trim(losses_of(model, *samples()), KEEP).backward()
    assert_close(both(ranks, "trim over ranks"), gradients(model))
    assert not torch.allclose(both(ranks, "trim per rank"), gradients(model), atol=1e-3)


def test_matching_of_gathered_features_is_that_of_the_whole_batches(ranks):
    model = network()
    matching_loss(model, samples(), samples(seed=2)).backward()
    assert_close(both(ranks, "matching"), gradients(model))


def test_noise_is_equal_on_all_ranks(ranks):
    model = network()
    noisy_steps(model, slice(None), torch.Generator().manual_seed(7))
    assert_close(both(ranks, "noise"), weights(model))


def test_unequal_generators_are_refused(ranks):
    for answers in ranks:
        assert answers["unequal generators"].startswith(
            "generator must be equally seeded on all ranks"
        )


def test_a_history_of_gathered_probabilities_is_that_of_the_whole_batch(ranks):
    history = PredictionHistory(B)
    note(history, network(), slice(None))
    for answers in ranks:
        assert_close(answers["history"]["mean"], history.mean)
        assert_close(answers["history"]["squares"], history.state_dict()["squares"])
        assert torch.equal(answers["history"]["count"], history.count)


def test_hard_batches_of_one_sampler_are_those_of_one_process(ranks):
    model = network()
    chosen = hard_batch_steps(model, slice(None))
    for batches, trained in (answers["hard batches"] for answers in ranks):
        assert batches == chosen
        assert_close(trained, weights(model))
