"""Subset search: an ensemble, often of checkpoints, says which samples are worth training on.

Chitta, Alvarez, Haussmann, Farabet, "Training data subset search with ensemble active learning",
arXiv 1905.12737. Its full text could not be verified: the four scores are the standard ones, and
which of them it prefers is open.

Every score takes the members' softmax outputs in one of three forms: one tensor ``(M, N, K)``; an
iterable of M tensors ``(N, K)``, looked at one after the other, so that a generator of predictions
needs the memory of one member; or an :class:`EnsembleTally` of such tensors, which gives all
scores from one pass over the members.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from hardtrain.strategies import _checks


class EnsembleTally:
    """What the scores need to know of an ensemble, collected member by member.

    Its memory is that of one member, whatever M: ``(N, K)`` in float64 and in int32.

    Attributes:
        num_members: M so far.
        mean: the mean prediction ``(N, K)``, float64.
        mean_entropy: the mean of the members' entropies ``(N,)``, float64, in nats.
        votes: how many members have their largest probability at a class ``(N, K)``, int32; of
            equal ones, the class of smallest number gets the vote.

    Shape:
        ``update(probabilities)``: ``(N, K)``, float (half precision, too), rows of sum 1; the
        first sets N, K and the device. Larger data sets go block by block, one tally each.

    Raises:
        ValueError: wrong shape or device; on the CPU also values outside [0, 1], or a row whose
            sum is not 1 (within 1e-4, or the precision of the type). No members where some are
            needed.
        TypeError: no float tensor.

    Example:
        >>> tally = EnsembleTally()
        >>> for member in torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]]):
        ...     tally.update(member)
        >>> tally.mean, variation_ratio(tally)
        (tensor([[0.6500, 0.3500]], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """

    _sum: Tensor

    def __init__(self) -> None:
        self.num_members = 0

    def update(self, probabilities: Tensor) -> None:
        """Add one member's predictions; gradients are not followed."""
        name = f"probabilities of member {self.num_members}"
        if self.num_members:
            _checks.tensor(name, probabilities, self._sum.shape, device=self._sum.device)
        else:
            _checks.tensor(name, probabilities, ("N", "K"))
        exact = probabilities.detach().double()
        _checks.within(name, exact, 0, 1, "finite and in [0, 1]")
        tolerance = max(1e-4, 4 * torch.finfo(probabilities.dtype).eps)
        sums = exact.sum(1)
        allowed = f"1 in every row (within {tolerance:.1g})"
        _checks.within(f"the sum of {name}", sums, 1 - tolerance, 1 + tolerance, allowed)
        if self.num_members == 0:
            self._sum = torch.zeros_like(exact, memory_format=torch.contiguous_format)
            self._entropies = torch.zeros_like(sums)
            self._votes = torch.zeros_like(self._sum, dtype=torch.int32)
            self._rows = torch.arange(len(exact), device=exact.device)
        self.num_members += 1
        self._sum += exact
        self._entropies += _entropy(exact)
        self._votes[self._rows, exact.argmax(1)] += 1

    @property
    def mean(self) -> Tensor:
        """The mean prediction ``(N, K)``, float64."""
        return self._sum / self.num_members

    @property
    def mean_entropy(self) -> Tensor:
        """The mean of the members' entropies ``(N,)``, float64, in nats."""
        return self._entropies / self.num_members

    @property
    def votes(self) -> Tensor:
        """How many members have their largest probability at a class ``(N, K)``, int32."""
        return self._votes.clone()


Members = Tensor | Iterable[Tensor] | EnsembleTally


def predictive_entropy(probabilities: Members) -> Tensor:
    r"""Entropy of the mean prediction: how uncertain the ensemble is, for whatever reason.

    .. math:: H\Big(\frac1M \sum_m p_m\Big), \quad H(p) = -\sum_k p_k \ln p_k

    Args:
        probabilities: ``(M, N, K)``, an iterable of ``(N, K)``, or an :class:`EnsembleTally`.

    Returns:
        Scores ``(N,)``, float64, in nats, from 0 to ln K.

    Raises:
        ValueError, TypeError: as :class:`EnsembleTally`, which names the member.

    Source:
        Standard; the paper's equation could not be verified.

    Example:
        >>> predictive_entropy(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.6931], dtype=torch.float64)
    """
    return _entropy(_tally(probabilities).mean)


def mutual_information(probabilities: Members) -> Tensor:
    r"""How much of the predictive entropy is disagreement between the members.

    .. math:: H\Big(\frac1M \sum_m p_m\Big) - \frac1M \sum_m H(p_m)

    Args, errors: as in :func:`predictive_entropy`.

    Returns:
        Scores ``(N,)``, float64, in nats, from 0 (all members agree) to ln K.

    Source:
        Standard; the paper's equation could not be verified.

    Example:
        >>> unsure = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
        >>> opposed = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
        >>> mutual_information([unsure, opposed])
        tensor([0.0000, 0.6931], dtype=torch.float64)
    """
    tally = _tally(probabilities)
    # never negative, but for rounding
    return (_entropy(tally.mean) - tally.mean_entropy).clamp(min=0)


def variation_ratio(probabilities: Members) -> Tensor:
    r"""The part of the members that do not vote for the class with most votes.

    .. math:: 1 - \frac1M \max_k \#\{m : \arg\max_j p_{m,j} = k\}

    Args, errors: as in :func:`predictive_entropy`.

    Returns:
        Scores ``(N,)``, float64, from 0 (all members agree) to 1 - 1/K.

    Source:
        Standard; the paper's equation could not be verified.

    Example:
        >>> variation_ratio(torch.eye(4)[[0, 0, 0, 2]].unsqueeze(1))
        tensor([0.2500], dtype=torch.float64)
    """
    tally = _tally(probabilities)
    return 1 - tally.votes.amax(1).double() / tally.num_members


def error_count(probabilities: Members, labels: Tensor) -> Tensor:
    """How many members are wrong.

    Args:
        probabilities: as in :func:`predictive_entropy`.
        labels: int64 ``(N,)``, in 0..K-1, on the device of the probabilities.

    Returns:
        Scores ``(N,)``, int64, from 0 to M.

    Raises:
        ValueError, TypeError: as :class:`EnsembleTally`; labels of another shape or type, or, on
            the CPU, out of range.

    Source:
        Standard; what the paper calls it could not be verified.

    Example:
        >>> error_count(torch.eye(4)[[0, 0, 0, 2]].unsqueeze(1), torch.tensor([0]))
        tensor([1])
    """
    tally = _tally(probabilities)
    labels = _checks.labels("labels", labels, tally.votes, tally.votes.shape[1])
    return tally.num_members - tally.votes.gather(1, labels.unsqueeze(1)).squeeze(1).long()


def select_subset(
    scores: Tensor, budget: int, *, labels: Tensor | None = None, balanced: bool = False
) -> Tensor:
    """The samples of highest score.

    Args:
        scores: ``(N,)``, float or integer, no NaN.
        budget: how many to choose, 1..N.
        labels: int64 ``(N,)``, on the device of ``scores``; needed, and used, if ``balanced``.
        balanced: choose from all classes alike, the best of each, then the second of each, and so
            on. Numbers per class differ by at most one, but for classes that are used up. What
            the last round cannot give to all goes to those with the highest score.

    Returns:
        Indices ``(budget,)``, int64, by falling score, equal ones by index.

    Raises:
        ValueError: wrong shape, ``budget`` outside 1..N, ``balanced`` without labels; on the CPU
            a NaN.
        TypeError: an argument of the wrong type.

    Source:
        The paper takes the highest scores. Balanced subsets are a baseline of ours.

    Example:
        >>> scores = torch.tensor([0.5, 0.9, 0.8, 0.7])
        >>> labels = torch.tensor([1, 0, 0, 0])
        >>> select_subset(scores, 2), select_subset(scores, 2, labels=labels, balanced=True)
        (tensor([1, 2]), tensor([1, 0]))
    """
    _checks.tensor("scores", scores, ("N",), dtypes=_checks.FLOATS + _checks.INTEGERS)
    _checks.integer("budget", budget, 1, len(scores))
    if scores.is_floating_point():
        _checks.within("scores", scores, -torch.inf, torch.inf, "free of NaN")
    ranked = scores.detach().argsort(descending=True, stable=True)
    if balanced:
        if labels is None:
            raise ValueError("labels must be given if balanced; got None")
        _checks.tensor("labels", labels, (len(scores),), dtypes=_checks.INTEGERS)
        # within the ranking: how many of the same class stand before
        by_class = labels[ranked].argsort(stable=True)
        classes = labels[ranked][by_class]
        place = torch.arange(len(ranked), device=ranked.device)
        rounds = torch.empty_like(place)
        rounds[by_class] = place - torch.searchsorted(classes, classes)
        ranked = ranked[rounds.argsort(stable=True)[:budget].sort().values]
    return ranked[:budget]


def _tally(probabilities: Members) -> EnsembleTally:
    """What the scores need, in one pass over the members."""
    if isinstance(probabilities, EnsembleTally):
        tally = probabilities
    else:
        if isinstance(probabilities, Tensor):
            _checks.tensor("probabilities", probabilities, ("M", "N", "K"))
        _checks.instance("probabilities", probabilities, Iterable)
        tally = EnsembleTally()
        for member in probabilities:
            tally.update(member)
    _checks.integer("the number of members in probabilities", tally.num_members)
    return tally


def _entropy(probabilities: Tensor) -> Tensor:
    """Of each row, in nats."""
    return torch.special.entr(probabilities).sum(1)
