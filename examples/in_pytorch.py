"""Bare PyTorch: workers, mixed precision with a gradient scaler, accumulation, clipping.

Lines that end in ``# + NAME`` are what a strategy adds, ``# state: NAME`` what saves its state;
without them it is plain training.

To read, not to run; ``python examples/lines.py pytorch hard`` shows one strategy's lines.
"""

from pathlib import Path

import torch
from small import DATA, ENSEMBLE, IRREDUCIBLE, Network
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Subset

import hardtrain as ht  # + all


def train(checkpoint: Path, num_epochs: int = 4, pause_after: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    data, model = DATA, Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    criterion = nn.CrossEntropyLoss(reduction="none")
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    scores = ht.predictive_entropy(ENSEMBLE)  # + subset
    data = Subset(data, ht.select_subset(scores, 64).tolist())  # + subset
    loader = DataLoader(data, 16, shuffle=True, num_workers=2)
    half = RandomSampler(data, num_samples=len(data) // 2)  # + share
    loader = DataLoader(data, 16, sampler=half, num_workers=2)  # + share
    sampler = ht.HardBatchSampler(len(data), 16, 0.5, generator=torch.Generator())  # + hard
    sampler = ht.PruningBatchSampler(len(data), 16, num_epochs=num_epochs)  # + pruning
    loader = DataLoader(data, batch_sampler=sampler, num_workers=2)  # + hard, pruning
    parts["sampler"] = sampler  # state: hard, pruning
    noise = ht.GradientNoise(optimizer, alpha=1e-3)  # + noise
    parts["noise"] = noise  # state: noise
    trimmed = ht.TrimmedLoss(end=0.2, num_epochs=num_epochs)  # + trimming
    parts["trimmed"] = trimmed  # state: trimming
    seen = ht.PredictionHistory(len(data))  # + bias
    parts["seen"] = seen  # state: bias
    selective = ht.SelectiveBackprop(beta=1)  # + selective
    parts["selective"] = selective  # state: selective
    for epoch in range(restore(checkpoint, parts), num_epochs):
        trimmed.set_epoch(epoch)  # + trimming
        num_batches = len(loader)
        for number, (inputs, targets, indices) in enumerate(loader, start=1):
            with torch.autocast("cpu", torch.float16):
                logits = model(inputs)
            losses = criterion(logits.float(), targets)
            loss = losses.mean()
            loss = trimmed(logits.float(), targets)  # + trimming
            loss = loss + ht.mmd(*model.features(inputs).chunk(2))  # + matching
            loss = (ht.sample_weights(ht.difficulty(seen), 0.1)[indices] * losses).mean()  # + bias
            loss = losses[selective.choose(losses)].mean()  # + selective
            hardest = ht.select_reducible(losses, IRREDUCIBLE[indices], 8)  # + reducible
            loss = losses[hardest].mean()  # + reducible
            loss = (sampler.update(indices, losses) * losses).mean()  # + pruning
            sampler.update(indices, loss)  # + hard
            seen.update(indices, (-losses.detach()).exp())  # + bias
            scaler.scale(loss / 2).backward()
            if number % 2 == 0 or number == num_batches:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        save(checkpoint, parts, epoch + 1)
        if epoch + 1 == pause_after:
            break
    return model


def save(checkpoint: Path, parts: dict, epoch: int) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save(state | {"random": torch.get_rng_state(), "epoch": epoch}, checkpoint)


def restore(checkpoint: Path, parts: dict) -> int:
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    return state["epoch"]
