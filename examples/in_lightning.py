"""Lightning: mixed precision, accumulation and clipping by its Trainer, which steps with a closure.

Lines that end in ``# + NAME`` are what a strategy adds, ``# state: NAME`` what saves its state;
without them it is plain training.

To read, not to run; ``python examples/lines.py lightning hard`` shows one strategy's lines.
"""

from pathlib import Path
from typing import Any

import lightning
import torch
from small import DATA, ENSEMBLE, IRREDUCIBLE, Network
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Subset

import hardtrain as ht  # + all


class Classifier(lightning.LightningModule):
    def __init__(self, num_epochs: int) -> None:
        super().__init__()
        self.num_epochs, self.network = num_epochs, Network()
        self.criterion = nn.CrossEntropyLoss(reduction="none")
        self.parts, self.loaded = {}, {}
        self.trimmed = ht.TrimmedLoss(end=0.2, num_epochs=num_epochs)  # + trimming

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.5)
        self.noise = ht.GradientNoise(optimizer, alpha=1e-3, hook=False)  # + noise
        self.keep("noise", self.noise)  # state: noise
        self.seen = ht.PredictionHistory(len(DATA))  # + bias
        self.keep("seen", self.seen)  # state: bias
        self.selective = ht.SelectiveBackprop(beta=1)  # + selective
        self.keep("selective", self.selective)  # state: selective
        return optimizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # + noise
        self.noise.add()  # + noise

    def train_dataloader(self) -> DataLoader:
        data = DATA
        scores = ht.predictive_entropy(ENSEMBLE)  # + subset
        data = Subset(data, ht.select_subset(scores, 64).tolist())  # + subset
        loader = DataLoader(data, 16, shuffle=True)
        half = RandomSampler(data, num_samples=len(data) // 2)  # + share
        loader = DataLoader(data, 16, sampler=half)  # + share
        self.chosen = ht.HardBatchSampler(len(data), 16, 0.5, generator=torch.Generator())  # + hard
        self.chosen = ht.PruningBatchSampler(len(data), 16, num_epochs=self.num_epochs)  # + pruning
        loader = DataLoader(data, batch_sampler=self.chosen)  # + hard, pruning
        self.keep("sampler", self.chosen)  # state: hard, pruning
        return loader

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        inputs, targets, indices = batch
        logits = self.network(inputs)
        losses = self.criterion(logits.float(), targets)
        loss = losses.mean()
        self.trimmed.set_epoch(self.current_epoch)  # + trimming
        loss = self.trimmed(logits.float(), targets)  # + trimming
        loss = loss + ht.mmd(*self.network.features(inputs).chunk(2))  # + matching
        loss = (ht.sample_weights(ht.difficulty(self.seen), 0.1)[indices] * losses).mean()  # + bias
        self.seen.update(indices, (-losses.detach()).exp())  # + bias
        loss = losses[self.selective.choose(losses)].mean()  # + selective
        hardest = ht.select_reducible(losses, IRREDUCIBLE[indices], 8)  # + reducible
        loss = losses[hardest].mean()  # + reducible
        loss = (self.chosen.update(indices, losses) * losses).mean()  # + pruning
        self.chosen.update(indices, loss)  # + hard
        return loss

    def keep(self, name: str, part: Any) -> None:
        """Of this part the state belongs into the checkpoint; there it is restored from, too."""
        self.parts[name] = part
        if name in self.loaded:
            part.load_state_dict(self.loaded[name])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["parts"] = {name: part.state_dict() for name, part in self.parts.items()}
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint["parts"]
        torch.set_rng_state(checkpoint["random"])


def train(checkpoint: Path, num_epochs: int = 4, pause_after: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_epochs=pause_after or num_epochs,
        accelerator="cpu",
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    classifier = Classifier(num_epochs)
    trainer.fit(classifier, ckpt_path=checkpoint if checkpoint.is_file() else None)
    trainer.save_checkpoint(checkpoint)
    return classifier.network
