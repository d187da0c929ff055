"""What mini-batch trimming costs, and what a backward pass over the kept samples saves."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

try:
    from benchmarks.timing import interleaved, median_ratio
except ModuleNotFoundError:  # run as a script, from anywhere
    from timing import interleaved, median_ratio

from hardtrain.strategies.trimming import trim, trimmed_backward

BATCH_SIZE = 128


def network() -> nn.Module:
    """A small CNN without batch-norm, 10 classes, for 3x32x32."""

    def block(channels_in, channels_out):
        convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        return [convolution, nn.GroupNorm(8, channels_out), nn.ReLU()]

    layers = [*block(3, 32), nn.MaxPool2d(2), *block(32, 64), *block(64, 64), nn.MaxPool2d(2)]
    layers += [*block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def rows(repetitions: int = 15) -> list[dict]:
    """Ratios to the step with the plain mean of the same losses, forward to optimiser step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network()
        inputs = torch.randn(BATCH_SIZE, 3, 32, 32).to(memory_format=torch.channels_last)
        targets = torch.randint(10, (BATCH_SIZE,))
    # learns next to nothing, so that every step has the same work to do
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step(accumulate):
        optimizer.zero_grad()
        accumulate()
        optimizer.step()

    def plain():
        F.cross_entropy(model(inputs), targets, reduction="none").mean().backward()

    def trimmed(keep):
        trim(F.cross_entropy(model(inputs), targets, reduction="none"), keep).backward()

    def kept_only(keep):
        trimmed_backward(model, inputs, targets, keep)

    functions = {
        "plain": partial(step, plain),
        "trim": partial(step, partial(trimmed, 0.6)),
        **{f"kept {keep}": partial(step, partial(kept_only, keep)) for keep in (1.0, 0.6, 0.2)},
    }
    times = interleaved(functions, repetitions)
    note = f"small CNN with group norm, batch {BATCH_SIZE}, {torch.get_num_threads()} threads"
    found = [("trim", "step with trim, keep 0.6", 1.03)]
    for keep, target in ((1.0, 1.03), (0.6, 0.85), (0.2, 0.55)):
        found.append((f"kept {keep}", f"step with trimmed_backward, keep {keep}", target))
    return [
        {
            "what": what,
            "ratio": round(median_ratio(times, name, "plain"), 3),
            "target": target,
            "note": f"against the plain step; {note}",
        }
        for name, what, target in found
    ]


if __name__ == "__main__":
    for row in rows():
        print(f"{row['ratio']:.3f} (target <= {row['target']:.2f}) {row['what']}; {row['note']}")
