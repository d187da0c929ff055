"""DistributedDataParallel: all ranks have equal samplers, which see the losses of all ranks.

Lines that end in ``# + NAME`` are what a strategy adds, ``# state: NAME`` what saves its state;
without them it is plain training. Every process calls it, once torch.distributed is initialised.

To read, not to run; ``python examples/lines.py ddp hard`` shows one strategy's lines.
"""

from pathlib import Path

import torch
from small import DATA, ENSEMBLE, IRREDUCIBLE, Network
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Subset

import hardtrain as ht  # + all


def train(checkpoint: Path, num_epochs: int = 4, pause_after: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    own = torch.Generator().manual_seed(0)
    data, model = DATA, DistributedDataParallel(Network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    criterion = nn.CrossEntropyLoss(reduction="none")
    parts = {"model": model, "optimizer": optimizer}
    scores = ht.predictive_entropy(ENSEMBLE)  # + subset
    data = Subset(data, ht.select_subset(scores, 64).tolist())  # + subset
    ranked = DistributedSampler(data)
    loader = DataLoader(data, 8, sampler=ranked)
    half = RandomSampler(data, num_samples=len(data) // 2, generator=own)  # + share
    half = ht.RankBatchSampler(BatchSampler(half, 16, drop_last=True))  # + share
    loader = DataLoader(data, batch_sampler=half)  # + share
    kept = ht.HardBatchSampler(len(data), 16, delta=0.5, generator=own)  # + hard
    kept = ht.PruningBatchSampler(96, 16, num_epochs=4, drop_last=True, generator=own)  # + pruning
    loader = DataLoader(data, batch_sampler=ht.RankBatchSampler(kept))  # + hard, pruning
    parts["kept"] = kept  # state: hard, pruning
    noise = ht.GradientNoise(optimizer, alpha=1e-3, generator=own)  # + noise
    parts["noise"] = noise  # state: noise
    trimmed = ht.TrimmedLoss(end=0.2, num_epochs=num_epochs)  # + trimming
    parts["trimmed"] = trimmed  # state: trimming
    seen = ht.PredictionHistory(len(data))  # + bias
    parts["seen"] = seen  # state: bias
    selective = ht.SelectiveBackprop(beta=1, generator=own)  # + selective
    parts["selective"] = selective  # state: selective
    for epoch in range(restore(checkpoint, parts, own), num_epochs):
        ranked.set_epoch(epoch)
        trimmed.set_epoch(epoch)  # + trimming
        for inputs, targets, indices in loader:
            logits = model(inputs)
            losses = criterion(logits, targets)
            loss = losses.mean()
            loss = trimmed(whole(logits), whole(targets))  # + trimming
            features = model.module.features(inputs).chunk(2)  # + matching
            loss = loss + ht.mmd(*map(whole, features))  # + matching
            loss = (ht.sample_weights(ht.difficulty(seen), 0.1)[indices] * losses).mean()  # + bias
            seen.update(whole(indices), (-whole(losses.detach())).exp())  # + bias
            loss = whole(losses)[selective.choose(whole(losses))].mean()  # + selective
            hardest = ht.select_reducible(losses, IRREDUCIBLE[indices], 4)  # + reducible
            loss = losses[hardest].mean()  # + reducible
            loss = (kept.update(whole(indices), whole(losses)) * whole(losses)).mean()  # + pruning
            kept.update(whole(indices), whole(losses.detach()).mean())  # + hard
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if torch.distributed.get_rank() == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            random = {"own": own.get_state(), "random": torch.get_rng_state()}
            torch.save(states | random | {"epoch": epoch + 1}, checkpoint)
        if epoch + 1 == pause_after:
            break
    torch.distributed.barrier()
    return model


def whole(values: Tensor) -> Tensor:
    """What all ranks have, in the order of ranks, with gradients."""
    return torch.cat(all_gather(values.contiguous()))


def restore(checkpoint: Path, parts: dict, own: torch.Generator) -> int:
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    own.set_state(state["own"])
    torch.set_rng_state(state["random"])
    return state["epoch"]
