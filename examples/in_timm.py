"""timm: its network, optimiser, schedule and loss scaler, as in its training script.

Lines that end in ``# + NAME`` are what a strategy adds, ``# state: NAME`` what saves its state;
without them it is plain training.

To read, not to run; ``python examples/lines.py timm hard`` shows one strategy's lines.
"""

from pathlib import Path

import torch
from small import DATA, ENSEMBLE, IRREDUCIBLE
from timm.models import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import NativeScaler
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Subset

import hardtrain as ht  # + all


def train(checkpoint: Path, num_epochs: int = 4, pause_after: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    data = DATA
    model = VisionTransformer(8, 4, 1, 10, embed_dim=16, depth=1, num_heads=2)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.05)
    schedule = CosineLRScheduler(optimizer, t_initial=num_epochs, lr_min=1e-4)
    scaler = NativeScaler(device="cpu")
    criterion = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    scores = ht.predictive_entropy(ENSEMBLE)  # + subset
    data = Subset(data, ht.select_subset(scores, 64).tolist())  # + subset
    loader = DataLoader(data, 16, shuffle=True)
    half = RandomSampler(data, num_samples=len(data) // 2)  # + share
    loader = DataLoader(data, 16, sampler=half)  # + share
    sampler = ht.HardBatchSampler(len(data), 16, 0.5, generator=torch.Generator())  # + hard
    sampler = ht.PruningBatchSampler(len(data), 16, num_epochs=num_epochs)  # + pruning
    loader = DataLoader(data, batch_sampler=sampler)  # + hard, pruning
    parts["sampler"] = sampler  # state: hard, pruning
    noise = ht.GradientNoise(optimizer, alpha=1e-3)  # + noise
    parts["noise"] = noise  # state: noise
    trimmed = ht.TrimmedLoss(criterion, end=0.2, num_epochs=num_epochs)  # + trimming
    parts["trimmed"] = trimmed  # state: trimming
    seen = ht.PredictionHistory(len(data))  # + bias
    parts["seen"] = seen  # state: bias
    selective = ht.SelectiveBackprop(beta=1)  # + selective
    parts["selective"] = selective  # state: selective
    for epoch in range(restore(checkpoint, parts), num_epochs):
        trimmed.set_epoch(epoch)  # + trimming
        for inputs, targets, indices in loader:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(inputs.view(-1, 1, 8, 8))
            losses = criterion(logits.float(), targets)
            loss = losses.mean()
            loss = trimmed(logits.float(), targets)  # + trimming
            features = model.forward_features(inputs.view(-1, 1, 8, 8)).mean(1)  # + matching
            loss = loss + ht.mmd(*features.chunk(2))  # + matching
            loss = (ht.sample_weights(ht.difficulty(seen), 0.1)[indices] * losses).mean()  # + bias
            seen.update(indices, logits.detach().float().softmax(1)[range(16), targets])  # + bias
            loss = losses[selective.choose(losses)].mean()  # + selective
            hardest = ht.select_reducible(losses, IRREDUCIBLE[indices], 8)  # + reducible
            loss = losses[hardest].mean()  # + reducible
            loss = (sampler.update(indices, losses) * losses).mean()  # + pruning
            sampler.update(indices, loss)  # + hard
            optimizer.zero_grad()
            scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        schedule.step(epoch + 1)
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save(states | {"epoch": epoch + 1, "random": torch.get_rng_state()}, checkpoint)
        if epoch + 1 == pause_after:
            break
    return model


def restore(checkpoint: Path, parts: dict) -> int:
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    return state["epoch"]
