"""Hugging Face accelerate: mixed precision, accumulation, clipping and checkpoints are its own.

Lines that end in ``# + NAME`` are what a strategy adds, ``# state: NAME`` what saves its state;
without them it is plain training.

To read, not to run; ``python examples/lines.py accelerate hard`` shows one strategy's lines.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from small import DATA, ENSEMBLE, IRREDUCIBLE, Network
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Subset

import hardtrain as ht  # + all


def train(checkpoint: Path, num_epochs: int = 4, pause_after: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    data, model = DATA, Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    criterion = nn.CrossEntropyLoss(reduction="none")
    scores = ht.predictive_entropy(ENSEMBLE)  # + subset
    data = Subset(data, ht.select_subset(scores, 64).tolist())  # + subset
    loader = DataLoader(data, 16, shuffle=True)
    half = RandomSampler(data, num_samples=len(data) // 2)  # + share
    loader = DataLoader(data, 16, sampler=half)  # + share
    sampler = ht.HardBatchSampler(len(data), 16, 0.5, generator=torch.Generator())  # + hard
    sampler = ht.PruningBatchSampler(len(data), 16, num_epochs=num_epochs)  # + pruning
    loader = DataLoader(data, batch_sampler=sampler)  # + hard, pruning
    accelerator.register_for_checkpointing(sampler)  # state: hard, pruning
    noise = ht.GradientNoise(optimizer, alpha=1e-3)  # + noise
    accelerator.register_for_checkpointing(noise)  # state: noise
    trimmed = ht.TrimmedLoss(end=0.2, num_epochs=num_epochs)  # + trimming
    accelerator.register_for_checkpointing(trimmed)  # state: trimming
    seen = ht.PredictionHistory(len(data))  # + bias
    accelerator.register_for_checkpointing(seen)  # state: bias
    selective = ht.SelectiveBackprop(beta=1)  # + selective
    accelerator.register_for_checkpointing(selective)  # state: selective
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    def objective(inputs: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        logits = model(inputs)
        losses = criterion(logits, targets)
        loss = losses.mean()
        loss = trimmed(logits, targets)  # + trimming
        features = accelerator.unwrap_model(model).features(inputs)  # + matching
        loss = loss + ht.mmd(*features.chunk(2))  # + matching
        loss = (ht.sample_weights(ht.difficulty(seen), 0.1)[indices] * losses).mean()  # + bias
        seen.update(indices, (-losses.detach()).exp())  # + bias
        loss = losses[selective.choose(losses)].mean()  # + selective
        hardest = ht.select_reducible(losses, IRREDUCIBLE[indices], 8)  # + reducible
        loss = losses[hardest].mean()  # + reducible
        loss = (sampler.update(indices, losses) * losses).mean()  # + pruning
        sampler.update(indices, loss)  # + hard
        return loss

    for epoch in range(restore(accelerator, checkpoint), num_epochs):
        trimmed.set_epoch(epoch)  # + trimming
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(objective(*batch))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.save_state(checkpoint)
        (checkpoint / "epoch.txt").write_text(str(epoch + 1))
        if epoch + 1 == pause_after:
            break
    return accelerator.unwrap_model(model)


def restore(accelerator: Accelerator, checkpoint: Path) -> int:
    if not checkpoint.is_dir():
        return 0
    accelerator.load_state(checkpoint)
    return int((checkpoint / "epoch.txt").read_text())
