"""Hugging Face Trainer: mixed precision, accumulation, clipping and checkpoints are its own.

Lines that end in ``# + NAME`` are what a strategy adds, ``# state: NAME`` what saves its state;
without them it is plain training.

To read, not to run; ``python examples/lines.py trainer hard`` shows one strategy's lines.
"""

from pathlib import Path
from typing import Any

import torch
from small import ENSEMBLE, INPUTS, IRREDUCIBLE, TARGETS, Network
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, StackDataset, Subset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import hardtrain as ht  # + all


def train(checkpoint: Path, num_epochs: int = 4, pause_after: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    data = StackDataset(inputs=INPUTS, labels=TARGETS, indices=range(96))
    model, parts = Network(), {}
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
    parts["sampler"] = sampler  # state: hard, pruning
    noise = ht.GradientNoise(optimizer, alpha=1e-3)  # + noise
    parts["noise"] = noise  # state: noise
    trimmed = ht.TrimmedLoss(end=0.2, num_epochs=num_epochs)  # + trimming
    parts["trimmed"] = trimmed  # state: trimming
    seen = ht.PredictionHistory(len(data))  # + bias
    parts["seen"] = seen  # state: bias
    selective = ht.SelectiveBackprop(beta=1)  # + selective
    parts["selective"] = selective  # state: selective

    class OwnTrainer(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            return self.accelerator.prepare(loader)

        def compute_loss(self, model: nn.Module, batch: dict[str, Tensor], *_, **__) -> Tensor:
            inputs, targets, indices = batch["inputs"], batch["labels"], batch["indices"]
            logits = model(inputs)
            losses = criterion(logits, targets)
            loss = losses.mean()
            trimmed.set_epoch(int(self.state.epoch))  # + trimming
            loss = trimmed(logits, targets)  # + trimming
            loss = loss + ht.mmd(*model.features(inputs).chunk(2))  # + matching
            loss = (ht.sample_weights(ht.difficulty(seen), 0.1)[indices] * losses).mean()  # + bias
            seen.update(indices, (-losses.detach()).exp())  # + bias
            loss = losses[selective.choose(losses)].mean()  # + selective
            hardest = ht.select_reducible(losses, IRREDUCIBLE[indices], 8)  # + reducible
            loss = losses[hardest].mean()  # + reducible
            loss = (sampler.update(indices, losses) * losses).mean()  # + pruning
            sampler.update(indices, loss)  # + hard
            return loss

    arguments = TrainingArguments(
        checkpoint,
        num_train_epochs=num_epochs,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        save_strategy="epoch",
        ignore_data_skip=True,
        resume_from_checkpoint=get_last_checkpoint(checkpoint) if checkpoint.is_dir() else None,
        report_to=[],
        disable_tqdm=True,
    )
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    kept = Kept(parts, pause_after or num_epochs)
    trainer = OwnTrainer(model, arguments, optimizers=(optimizer, constant), callbacks=[kept])
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    return model


class Kept(TrainerCallback):
    """Saves and restores the state of these parts, and stops after so many passes: Trainer takes
    all to be as long as the first, which those of batch samplers are not."""

    def __init__(self, parts: dict[str, Any], num_passes: int) -> None:
        self.parts, self.num_passes, self.passes = parts, num_passes, 0

    def on_save(self, args, state, control, **_) -> None:
        states = {name: part.state_dict() for name, part in self.parts.items()}
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save(states | {"passes": self.passes}, folder / "parts.pt")

    def on_train_begin(self, args, state, control, **_) -> None:
        if args.resume_from_checkpoint:
            states = torch.load(Path(args.resume_from_checkpoint) / "parts.pt")
            self.passes = states["passes"]
            for name, part in self.parts.items():
                part.load_state_dict(states[name])

    def on_epoch_end(self, args, state, control, model, **_) -> None:
        model.zero_grad()  # a shorter pass may leave some that wait for another batch
        self.passes += 1
        control.should_training_stop |= self.passes == self.num_passes
