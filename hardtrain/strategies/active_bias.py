"""Active Bias: emphasise the samples whose prediction is uncertain.

Chang, Learned-Miller, McCallum, "Active Bias: Training more accurate neural networks by
emphasizing high variance samples", arXiv 1704.07433. Its full text could not be verified: the
deviation agrees with public re-implementations, the other scores are the commonly cited ones.
"""

import math
import sys
from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from hardtrain.strategies import _checks


class PredictionHistory:
    r"""Count, mean and variance of the true class's probability, for every sample.

    With old mean :math:`\bar p` and new mean :math:`\bar p'`, a batch adds

    .. math:: n' = n + \sum 1, \quad \bar p' = \bar p + \sum \frac{p - \bar p}{n'}, \quad
              S' = S + \sum (p - \bar p)(p - \bar p'), \quad \hat v = S / n

    The sums run over the sample's probabilities p in the batch, so one that is drawn twice
    counts twice. Three numbers a sample are kept, in float64: as sound as two passes over a list.

    Args:
        num_samples: N, size of the data set.
        device: where they lie; best where the probabilities come from.

    Shape:
        ``update(indices, probabilities)``: int64 and float ``(B,)``; they are moved to ``device``.
        ``count`` int64, ``mean`` and ``variance`` (population, 1/n) float64 ``(N,)``; mean and
        variance of a sample never seen are NaN.

    Raises:
        ValueError: an argument of the wrong shape or out of range (contents are looked at on the
            CPU only; on a GPU that would mean waiting); a state of another ``num_samples``.
        TypeError: an argument of the wrong type.

    Under ``DistributedDataParallel`` a rank's history knows its own samples only. Gathered
    (``all_gather`` of indices and probabilities before ``update``) all ranks have that of one
    process, hence the same scores, weights and, with an equally seeded `WeightedBatchSampler`,
    the same batches, of which each takes its part.

    Source:
        The history H_i of a sample, without its list. On a GPU, occurrences in one batch are
        added in any order, which can change the last bit.

    Example:
        >>> history = PredictionHistory(3)
        >>> history.update(torch.tensor([0, 2]), torch.tensor([0.5, 1.0]))
        >>> history.update(torch.tensor([0, 0]), torch.tensor([0.25, 0.75]))
        >>> history.count.tolist(), history.mean.tolist()
        ([3, 0, 1], [0.5, nan, 1.0])
    """

    def __init__(self, num_samples: int, *, device: torch.device | str | None = None) -> None:
        self.num_samples = _checks.integer("num_samples", num_samples)
        self._count = torch.zeros(self.num_samples, dtype=torch.int64, device=device)
        self._mean = torch.zeros(self.num_samples, dtype=torch.float64, device=device)
        self._squares = torch.zeros_like(self._mean)  # S, sum of the squared deviations

    def update(self, indices: Tensor, probabilities: Tensor) -> None:
        """Add one probability of the true class per index; gradients are not followed."""
        indices = _checks.indices(indices, self.num_samples)
        _checks.tensor("probabilities", probabilities, (len(indices),))
        self._refuse_labels(indices)
        _checks.within("probabilities", probabilities, 0, 1, "finite and in [0, 1]")
        device = self._mean.device
        indices = indices.to(device, non_blocking=True)
        new = probabilities.detach().to(device, torch.float64, non_blocking=True)
        # index_put_ would fix the order on a GPU, but waits for it in many versions of torch
        self._count.index_add_(0, indices, torch.ones_like(indices))
        from_old = new - self._mean[indices]
        self._mean.index_add_(0, indices, from_old / self._count[indices])
        self._squares.index_add_(0, indices, from_old * (new - self._mean[indices]))

    def _refuse_labels(self, indices: Tensor) -> None:
        """A batch with fewer possible values than samples is no choice from a large data set."""
        if _checks.on_host(indices) and self.num_samples >= 2 * len(indices):
            most = indices.max().item() + 1
            if most < len(indices):
                raise ValueError(
                    f"indices must be positions in the data set of {self.num_samples}, not labels; "
                    f"got {len(indices)} values in 0..{most - 1}"
                )

    def merge(self, other: "PredictionHistory | Mapping") -> None:
        """Add what another history of the same samples saw: of another rank, say.

        Args:
            other: a history or its state. Of ranks that each update their own::

                states = [None] * torch.distributed.get_world_size()
                torch.distributed.all_gather_object(states, own.state_dict())
                merged = PredictionHistory(num_samples)
                for state in states:
                    merged.merge(state)
        """
        state = other.state_dict() if isinstance(other, PredictionHistory) else other
        _checks.settings(state, {"num_samples": self.num_samples})
        names = ("count", "mean", "squares")
        count, mean, squares = (state[name].to(self._mean.device) for name in names)
        total = (self._count + count).clamp(min=1)
        apart, share = mean - self._mean, count.double() / total
        self._squares += squares + apart.square() * self._count * share
        self._mean += apart * share
        self._count += count

    @property
    def count(self) -> Tensor:
        """n, how many probabilities came."""
        return self._count.clone()

    @property
    def mean(self) -> Tensor:
        """p̄, the mean of what came."""
        return self._mean.where(self._count > 0, math.nan)

    @property
    def variance(self) -> Tensor:
        """v̂, the population variance of what came."""
        # rounding can leave a sum below 0 if a sample occurs twice in a batch
        return self._squares.clamp(min=0) / self._count  # 0 / 0 is NaN

    def state_dict(self) -> dict:
        """Tensors and a number."""
        return {
            "num_samples": self.num_samples,
            "count": self._count.clone(),
            "mean": self._mean.clone(),
            "squares": self._squares.clone(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state``, on this history's device."""
        _checks.settings(state, {"num_samples": self.num_samples})
        self._count.copy_(state["count"])
        self._mean.copy_(state["mean"])
        self._squares.copy_(state["squares"])


def prediction_deviation(history: PredictionHistory) -> Tensor:
    r"""How much the prediction of a sample varies, with a bonus for samples seldom seen.

    .. math:: s = \sqrt{\hat v + \frac{\hat v^2}{n - 1}}, \quad n \ge 2

    Returns:
        Scores ``(N,)``, float64, in [0, 0.56]; 0 where n < 2.

    Source:
        The score of SGD-SPV and SGD-WPV, as in three public re-implementations; of these, two
        take the population variance, as here, and one the unbiased.

    Example:
        >>> history = PredictionHistory(2)
        >>> for probability in (0.0, 1.0):
        ...     history.update(torch.tensor([1]), torch.tensor([probability]))
        >>> prediction_deviation(history)  # the root of 1/4 + 1/16
        tensor([0.0000, 0.5590], dtype=torch.float64)
    """
    count, variance = history.count, history.variance
    score = (variance + variance.square() / (count - 1)).sqrt()
    return score.where(count >= 2, 0.0)


def threshold_closeness(history: PredictionHistory) -> Tensor:
    r"""How near the mean probability is to the decision threshold: :math:`\bar p (1 - \bar p)`.

    Returns:
        Scores ``(N,)``, float64, in [0, 0.25]; 0 for a sample never seen.

    Source:
        The score of SGD-STC and SGD-WTC.

    Example:
        >>> history = PredictionHistory(2)
        >>> history.update(torch.tensor([0]), torch.tensor([0.5]))
        >>> threshold_closeness(history).tolist()
        [0.25, 0.0]
    """
    mean = history.mean
    return (mean * (1 - mean)).where(history.count > 0, 0.0)


def difficulty(history: PredictionHistory) -> Tensor:
    r"""How wrong the mean prediction is: :math:`1 - \bar p`.

    Returns:
        Scores ``(N,)``, float64, in [0, 1]; 0 for a sample never seen.

    Source:
        The score of SGD-SD, SGD-ISD and SGD-WD.

    Example:
        >>> history = PredictionHistory(2)
        >>> history.update(torch.tensor([0]), torch.tensor([0.25]))
        >>> difficulty(history).tolist()
        [0.75, 0.0]
    """
    return (1 - history.mean).where(history.count > 0, 0.0)


def easiness(history: PredictionHistory) -> Tensor:
    r"""How right the mean prediction is: :math:`\bar p`.

    Returns:
        Scores ``(N,)``, float64, in [0, 1]; 0 for a sample never seen.

    Source:
        The score of SGD-SE and SGD-WE.

    Example:
        >>> history = PredictionHistory(2)
        >>> history.update(torch.tensor([0]), torch.tensor([0.25]))
        >>> easiness(history).tolist()
        [0.25, 0.0]
    """
    return history.mean.where(history.count > 0, 0.0)


def sampling_probabilities(scores: Tensor, smoothing: float | Tensor) -> Tensor:
    r"""The probability of drawing each sample.

    .. math:: P_i = \frac{s_i + \varepsilon}{\sum_j (s_j + \varepsilon)}

    Args:
        scores: s, shape ``(N,)``, float, >= 0.
        smoothing: ε >= 0, in the unit of the scores; a number, or a float tensor ``()``, so that
            a part of the mean score need not leave its device.

    Returns:
        ``(N,)``, float64, sum 1. The larger ε, the nearer to uniform.

    Raises:
        ValueError: wrong shape, a negative or infinite value, or all ``scores + smoothing`` 0 (a
            history without updates); contents are looked at on the CPU only.
        TypeError: an argument of the wrong type.

    Source:
        SGD-SPV, -STC, -SD, -SE. The value of ε could not be verified; it is said to be relative
        to the mean score at the end of the burn-in.

    Example:
        >>> sampling_probabilities(torch.tensor([0.0, 0.5]), smoothing=0.25).tolist()
        [0.25, 0.75]
    """
    smoothed, total = _smoothed(scores, smoothing)
    return smoothed / total


def sample_weights(scores: Tensor, smoothing: float | Tensor) -> Tensor:
    r"""The weight of each sample's loss, with mean 1, so that the learning rate keeps its meaning.

    .. math:: w_i = N \frac{s_i + \varepsilon}{\sum_j (s_j + \varepsilon)}

    Args, errors: as in :func:`sampling_probabilities`.

    Returns:
        ``(N,)``, >= 0; float32, as losses are.

    Source:
        SGD-WPV, -WTC, -WD, -WE. Of re-implementations, one normalises within the mini-batch; here
        over the data set.

    Example:
        >>> weights = sample_weights(torch.tensor([0.0, 0.5]), smoothing=0.25)
        >>> losses, indices = torch.tensor([2.0]), torch.tensor([1])
        >>> weights, (weights[indices] * losses).mean()
        (tensor([0.5000, 1.5000]), tensor(3.))
    """
    smoothed, total = _smoothed(scores, smoothing)
    return (smoothed * (len(smoothed) / total)).float()


def importance_weights(probabilities: Tensor) -> Tensor:
    r"""Weights that undo the bias of drawing with :math:`P_i`: the expected gradient is that of
    the mean loss.

    .. math:: w_i = \frac{1}{N P_i}

    Args:
        probabilities: P, shape ``(N,)``, float, sum 1.

    Returns:
        ``(N,)``, float32; 0 where P is 0, which is never drawn. In expectation over draws 1.

    Raises:
        ValueError, TypeError: as for :class:`WeightedBatchSampler`.

    Source:
        SGD-ISD.

    Example:
        >>> importance_weights(torch.tensor([0.25, 0.75]))
        tensor([2.0000, 0.6667])
    """
    _check_distribution(probabilities, "N")
    exact = probabilities.detach().double()
    return (1 / (len(exact) * exact)).where(exact > 0, 0.0).float()


class WeightedBatchSampler(Sampler[list[int]]):
    """Batches drawn with replacement, each sample with its own probability.

    A pass is ⌈N/B⌉ batches and N draws: the last batch may be shorter. A uniform number falls
    between the cumulative probabilities of two neighbours, which a binary search finds.

    Args:
        probabilities: P, shape ``(N,)``, float, sum 1, on any device, where the indices are found.
            Can be replaced at any time by another ``(N,)``; the next batch is drawn from that.
        batch_size: B >= 1.
        generator: on the CPU; all randomness comes from it, so its state is the state to save.
            None: torch's global one.

    Raises:
        ValueError: wrong shape, another N, and on the CPU, values that are no probabilities or
            whose sum is not 1 (within 1e-4).
        TypeError: an argument of the wrong type.

    Source:
        SGD-SD and its kin. Sampling with replacement, P over the whole data set, could not be
        verified. Probabilities are rounded up to multiples of 2^-52, as integers: their sums are
        exact, so every device draws the same, and what has probability 0 is never drawn.

    Example:
        >>> sampler = WeightedBatchSampler(torch.tensor([0.0, 1.0, 0.0]), batch_size=2)
        >>> list(sampler), len(sampler)
        ([[1, 1], [1]], 2)
        >>> from torch.utils.data import DataLoader, StackDataset
        >>> dataset = [0.5, 0.25, 0.0]
        >>> loader = DataLoader(StackDataset(dataset, range(len(dataset))), batch_sampler=sampler)
        >>> inputs, indices = next(iter(loader))
    """

    def __init__(
        self, probabilities: Tensor, batch_size: int, *, generator: Generator | None = None
    ) -> None:
        self.batch_size = _checks.integer("batch_size", batch_size)
        _checks.cpu_generator(generator)
        self.generator = generator
        self.num_samples = len(_checks.tensor("probabilities", probabilities, ("N",)))
        self.probabilities = probabilities

    @property
    def probabilities(self) -> Tensor:
        """P, from which the next batch is drawn."""
        return self._probabilities.clone()

    @probabilities.setter
    def probabilities(self, probabilities: Tensor) -> None:
        _check_distribution(probabilities, self.num_samples)
        self._probabilities = probabilities.detach().clone()
        self._borders = _borders(self._probabilities)

    def __repr__(self) -> str:
        return _checks.shown(self, num_samples=self.num_samples, batch_size=self.batch_size)

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self.tensors():
            yield indices.tolist()

    def tensors(self) -> Iterator[Tensor]:
        """The batches of a pass as int64 ``(B,)`` where the probabilities are: waits for no GPU."""
        for start in range(0, self.num_samples, self.batch_size):
            yield self.draw(min(self.batch_size, self.num_samples - start))

    def draw(self, num_draws: int) -> Tensor:
        """So many indices, int64 ``(num_draws,)``, outside any pass."""
        uniform = torch.rand(num_draws, dtype=torch.float64, generator=self.generator, device="cpu")
        return _positions(self._borders, uniform)


def _borders(probabilities: Tensor) -> Tensor:
    """Cumulative probabilities in units of 2^-52: float64, but whole, and so exact."""
    return (probabilities.double() * 2.0**52).ceil().long().cumsum(0).double()


def _positions(borders: Tensor, uniform: Tensor) -> Tensor:
    """Index i for each number in [0, 1), where borders[i - 1] <= number * total < borders[i]."""
    # below the total, so before the end: even (1 - 2^-53) * total never rounds up to it
    points = uniform.to(borders.device, non_blocking=True) * borders[-1]
    return torch.searchsorted(borders, points, right=True)


def _smoothed(scores: Tensor, smoothing: float | Tensor) -> tuple[Tensor, Tensor]:
    """Scores plus smoothing in float64, and the sum."""
    _checks.tensor("scores", scores, ("N",))
    most = sys.float_info.max
    _checks.within("scores", scores, 0, most, "finite and >= 0")
    if isinstance(smoothing, Tensor):
        smoothing = _checks.tensor("smoothing", smoothing, ()).detach().double()
        _checks.within("smoothing", smoothing, 0, most, "finite and >= 0")
    else:
        smoothing = _checks.not_negative("smoothing", smoothing)
    smoothed = scores.detach().double() + smoothing
    total = smoothed.sum()
    least = sys.float_info.min
    _checks.within("the sum of scores + smoothing", total, least, most, "finite and > 0")
    return smoothed, total


def _check_distribution(probabilities: Tensor, num_samples: int | str) -> None:
    _checks.tensor("probabilities", probabilities, (num_samples,))
    _checks.within("probabilities", probabilities, 0, 1, "finite and in [0, 1]")
    total = probabilities.sum(dtype=torch.float64)
    _checks.within("the sum of probabilities", total, 1 - 1e-4, 1 + 1e-4, "1 (within 1e-4)")
