"""What the examples train: a small network on scikit-learn's digits, which know their indices."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

digits = load_digits()
INPUTS = torch.tensor(digits.data[:96], dtype=torch.float32) / 16
TARGETS = torch.tensor(digits.target[:96])
# of a data set that gives no indices: StackDataset(dataset, range(len(dataset)))
DATA = TensorDataset(INPUTS, TARGETS, torch.arange(96))


class Network(nn.Module):
    """Gives logits; its features are there too, for strategies that look at them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 32), nn.Tanh())
        self.classifier = nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.features(inputs))


def logits_of(members: Tensor) -> Tensor:
    """Of a small model that has seen ``members`` only: minus the distances to their class means."""
    means = [INPUTS[members & (TARGETS == label)].mean(0) for label in range(10)]
    return -torch.cdist(INPUTS, torch.stack(means)).square()


# what reducible loss and subset search need beforehand: losses by a model that has not seen the
# sample, and the probabilities (M, N, K) of an ensemble
HALF = torch.arange(96) % 2 == 0
UNSEEN = torch.where(HALF[:, None], logits_of(~HALF), logits_of(HALF))
IRREDUCIBLE = nn.functional.cross_entropy(UNSEEN, TARGETS, reduction="none")
ENSEMBLE = torch.stack([logits_of(torch.arange(96) % 3 != i).softmax(1) for i in range(3)])
