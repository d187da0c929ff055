"""Distribution matching: two mini-batches should look alike to the last hidden layer.

Li, Pan, Li, Zhu, "Improve SGD Training via Aligning Mini-batches" (ITDM), arXiv 2002.09917.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from hardtrain.strategies import _checks

SCALES = (1, 2, 4, 8, 16)
_Match = tuple[Tensor, Tensor]  # its value, and its gradient by the features


def plain_mmd(
    x: Tensor, y: Tensor, scales: Sequence[float] = SCALES, bandwidth: float | Tensor | None = None
) -> Tensor:
    """:func:`mmd` as it is printed, for features ``(n, D)`` and ``(m, D)``: to read, and to hold
    the fast form against. Where the sets coincide, the root has no gradient."""
    pooled, n = torch.cat([x, y]), len(x)
    distances = (pooled[:, None] - pooled).square().sum(2)
    if bandwidth is None:
        i, j = torch.triu_indices(len(pooled), len(pooled), 1)
        bandwidth = distances[i, j].detach().median()
    kernels = [torch.exp(-distances / (scale * bandwidth)) for scale in scales]
    k = torch.stack(kernels).mean(0)
    return (k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()).sqrt()


def plain_class_conditional_mmd(
    x: Tensor, x_labels: Tensor, y: Tensor, y_labels: Tensor, num_classes: int
) -> Tensor:
    """:func:`class_conditional_mmd`, likewise, as a loop over the classes."""
    match = x.new_zeros(())
    for k in range(num_classes):
        of_x, of_y = x[x_labels == k], y[y_labels == k]
        if len(of_x) and len(of_y):
            match = match + plain_mmd(of_x, of_y)
    return match / num_classes


# That was the method; the fast form below computes value and gradient together, of all classes at
# once, the same up to rounding: with weights w = 1/n for samples of x, -1/m of y, which sum to 0,
#     MMD² = sum_ij w_i w_j k_ij = 2 sum_{i<j} w_i w_j (k_ij - 1),
# which is exactly 0 for equal features. With B_ij = 4 w_i w_j (-dk_ij/dd²_ij), the gradient by the
# features z is (B - diag(B 1)) z: one matrix product. The median counts as constant.
# On CPU the classes are padded to the size of the largest. On a GPU, or if one outweighs the rest,
# pairs of different classes are masked: that never waits for the device.


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    scales: Sequence[float] = SCALES,
    bandwidth: float | Tensor | None = None,
    squared: bool = False,
) -> Tensor:
    r"""Maximum mean discrepancy between two sets of features: the match of ITDM-j.

    .. math:: \mathrm{MMD}^2 = \frac{1}{n^2} \sum_{i,j} k(x_i, x_j)
              + \frac{1}{m^2} \sum_{i,j} k(y_i, y_j) - \frac{2}{nm} \sum_{i,j} k(x_i, y_j), \quad
              k(u, v) = \frac{1}{|S|} \sum_{s \in S} \exp\Bigl(-\frac{\|u - v\|^2}{s \sigma}\Bigr)

    Args:
        x, y: features, shapes ``(n, D)`` and ``(m, D)``, float.
        scales: S, the widths of the averaged kernels, in units of ``bandwidth``.
        bandwidth: :math:`\sigma`, a squared distance, treated as constant: a number > 0 or a
            tensor ``()``; by default :func:`median_bandwidth`. Below 128 eps of the largest
            squared distance, where distances are rounding, that counts instead.
        squared: MMD² in place of its root; smooth where the sets coincide.

    Returns:
        Scalar, shape ``()``, >= 0, in float32, or float64 if a set has it; computed outside
        autocast from features centred by the pooled mean. Where MMD² is 0 up to rounding (1 eps)
        the root and its gradient are 0. NaN if a feature is. There is no second derivative.

    Raises:
        ValueError, TypeError: shapes or types that do not fit, no samples, sets on different
            devices, scales or a bandwidth that are not positive.

    Under ``DistributedDataParallel``: of a rank's samples, unless gathered, as for ``trim``.

    Source:
        Section 3.1 (the second index i of its double sums is j here), eqs. (4) and (7). The
        printed root has no gradient at 0; here that is 0, and no epsilon is added. The authors'
        code takes the median over the full matrix: see :func:`median_bandwidth`.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [4.0]])
        >>> mmd(x, y), mmd(x, x)
        (tensor(0.9154), tensor(0.))
    """
    pooled, n, m = _pooled(x, y), len(x), len(y)
    weights = torch.cat([pooled.new_full((n,), 1 / n), pooled.new_full((m,), -1 / m)])
    settings = _settings(pooled, 1, scales, bandwidth, squared)
    return _WithGradient.apply(pooled[None], _match_groups, weights[None], None, settings)


def class_conditional_mmd(
    x: Tensor,
    x_labels: Tensor,
    y: Tensor,
    y_labels: Tensor,
    num_classes: int,
    *,
    scales: Sequence[float] = SCALES,
    bandwidth: float | Tensor | None = None,
    squared: bool = False,
) -> Tensor:
    r"""Mean over the classes of the MMD between both sets' samples of one class: ITDM-c's match.

    .. math:: \mathrm{Match}_c = \frac{1}{K} \sum_{k=1}^{K} \mathrm{MMD}(H_1^k, H_2^k)

    Args:
        x, y: features, shapes ``(n, D)`` and ``(m, D)``, float.
        x_labels, y_labels: ``(n,)`` and ``(m,)``, int, in ``[0, K)``. On a GPU that is not
            checked, because it would wait for the device: samples with other labels do not count.
        num_classes: K >= 1, of the task: a class that is absent on either side adds 0.
        scales, squared: as in :func:`mmd`, for each class.
        bandwidth: as in :func:`mmd`, by default a median for each class; or a tensor ``(K,)``.

    Returns:
        Scalar, shape ``()``, as in :func:`mmd`; features are centred class by class.

    Raises:
        As :func:`mmd`, and for labels of the wrong shape or, on CPU, outside [0, K).

    Source:
        Eqs. (5) and (6); eq. (5) prints m₁ for the size of the second batch, too. The paper does
        not say what a class adds that a batch lacks; in the authors' code none is lacking.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [4.0]])
        >>> labels = torch.tensor([0, 1])
        >>> class_conditional_mmd(x, labels, y, labels, num_classes=3)
        tensor(0.5033)
    """
    pooled = _pooled(x, y)
    labels, sizes, weights = _classes(pooled, x, x_labels, y_labels, num_classes)
    settings = _settings(pooled, num_classes, scales, bandwidth, squared)
    padded = _checks.on_host(pooled) and len(sizes) * int(sizes.max()) ** 2 <= len(pooled) ** 2
    match = _match_padded if padded else _match_masked
    return _WithGradient.apply(pooled, match, labels, sizes, weights, settings)


def median_bandwidth(
    x: Tensor,
    y: Tensor,
    x_labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    num_classes: int | None = None,
    *,
    diagonal: bool = False,
) -> Tensor:
    r"""Median of the squared distances in the pooled sample, the default :math:`\sigma`.

    Args:
        x, y: features, shapes ``(n, D)`` and ``(m, D)``, float.
        x_labels, y_labels, num_classes: ``(n,)`` and ``(m,)``, int, and K; with labels there is
            one median for each class.
        diagonal: False: over the pairs i < j, the default of this module. True: over the full
            matrix, as in the authors' code; its zero diagonal makes :math:`\sigma` 0 for a class
            with one sample on each side.

    Returns:
        Shape ``()``, or ``(K,)`` with labels, 0 for a class without pairs. If their number is
        even, the lower of the two in the middle. It has no gradient.

    Errors: as in :func:`class_conditional_mmd`.

    Source:
        The paper names the median heuristic without saying over which pairs.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])
        >>> median_bandwidth(x, y), median_bandwidth(x, y, diagonal=True)
        (tensor(4.), tensor(1.))
    """
    pooled = _pooled(x, y).detach()
    with torch.autocast(x.device.type, enabled=False):
        if x_labels is not None or y_labels is not None:
            labels, sizes, _ = _classes(pooled, x, x_labels, y_labels, num_classes)
            centred = _centred_by_class(pooled, labels[:, None] == labels)
            distances = _squared_distances(centred[None])[0]
            return _class_medians(distances, labels, sizes, diagonal)[:num_classes]
        distances = _squared_distances(_centred(pooled[None])).flatten()
        return (distances if diagonal else distances[_pairs(len(pooled), x.device)[2]]).median()


class _WithGradient(torch.autograd.Function):
    """The value of a match of features, whose gradient is computed along with it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, match: Callable[..., _Match], *others: Any) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            value, gradient = match(features, *others)
        ctx.save_for_backward(gradient)
        ctx.num_others = 1 + len(others)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return grad_output * ctx.saved_tensors[0], *[None] * ctx.num_others


class _Settings(NamedTuple):
    num_classes: int
    scales: tuple[float, ...]
    bandwidth: Tensor | None  # (C,)
    squared: bool


def _match_groups(
    groups: Tensor, weights: Tensor, sizes: Tensor | None, settings: _Settings
) -> _Match:
    """The match of groups ``(C, P, D)``, weights ``(C, P)``, from pairs i < j alone. Of a group the
    first ``sizes (C, 1)`` rows count, by default all."""
    num_rows = groups.shape[1]
    centred = _centred(groups)
    i, j, pairs = _pairs(num_rows, groups.device)
    distances = _squared_distances(centred).flatten(1).index_select(1, pairs)
    if settings.bandwidth is not None:
        bandwidth = settings.bandwidth[:, None]
    elif sizes is None:
        bandwidth = distances.median()
    else:
        valid = distances.masked_fill(j >= sizes, math.nan)  # of i < j both count if j does
        bandwidth = valid.nanmedian(1, keepdim=True).values.nan_to_num_()  # 0 without pairs
    bandwidth = _floored(bandwidth, distances.amax(1, keepdim=True))
    kernel, slope = _kernels(distances, bandwidth, settings.scales)
    pair_weights = weights.index_select(1, i) * weights.index_select(1, j)
    squares = kernel.mul_(pair_weights).sum(1, keepdim=True) * 2
    value, factor = _mean_root(squares, settings)
    edges = slope.mul_(pair_weights).mul_(factor / bandwidth)
    graph = edges.new_zeros(len(groups), num_rows**2).index_copy_(1, pairs, edges)
    graph = graph.view(len(groups), num_rows, num_rows)
    return value, _graph_gradient(graph + graph.mT, centred)


def _match_padded(
    pooled: Tensor, labels: Tensor, sizes: Tensor, weights: Tensor, settings: _Settings
) -> _Match:
    """One group ``(P, D)`` for each class, P the size of the largest, at least 2."""
    order = labels.argsort(stable=True)
    sizes = sizes[:, None]
    ends = sizes.cumsum(0)
    row = torch.arange(max(2, int(sizes.max())))
    # padding repeats the last of its class, with weight 0
    members = order[torch.minimum(ends - sizes + row, ends - 1).clamp_(min=0)]
    weights = weights[members] * (row < sizes)
    value, gradient = _match_groups(pooled[members], weights, sizes, settings)
    return value, torch.zeros_like(pooled).index_add_(0, members.flatten(), gradient.flatten(0, 1))


def _match_masked(
    pooled: Tensor, labels: Tensor, sizes: Tensor, weights: Tensor, settings: _Settings
) -> _Match:
    """The full matrix, where pairs of different classes have weight 0."""
    same = labels[:, None] == labels
    centred = _centred_by_class(pooled, same)[None]
    distances = _squared_distances(centred)[0]
    members = labels[:, None] == torch.arange(len(sizes), device=labels.device)
    largest = ((distances * same).amax(1, keepdim=True) * members).amax(0)
    if settings.bandwidth is None:
        bandwidth = _class_medians(distances, labels, sizes)
    else:
        bandwidth = pad(settings.bandwidth, (0, len(sizes) - settings.num_classes))
    bandwidth = _floored(bandwidth, largest)[labels, None]
    kernel, slope = _kernels(distances, bandwidth, settings.scales)
    pair_weights = (weights[:, None] * weights).mul_(same)
    pair_weights.diagonal().zero_()
    squares = (kernel.mul_(pair_weights).sum(1, keepdim=True) * members).sum(0)
    value, factor = _mean_root(squares, settings)
    graph = slope.mul_(pair_weights).mul_(factor[labels, None] / bandwidth)
    return value, _graph_gradient(graph[None], centred)[0]


def _classes(
    pooled: Tensor, x: Tensor, x_labels: Tensor | None, y_labels: Tensor | None, num_classes: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels ``(N,)``, sizes ``(C,)``, weights ``(N,)``. C is K, or K + 1 where labels are not
    looked at: those outside [0, K) are class K, whose samples have weight 0."""
    num_classes = _checks.integer("num_classes", num_classes)
    of_x = _checks.labels("x_labels", x_labels, x, num_classes)
    of_y = _checks.labels("y_labels", y_labels, pooled[len(x) :], num_classes)
    labels = torch.cat([of_x, of_y])
    checked = _checks.on_host(labels)
    if not checked:
        labels = labels.where(labels == labels.clamp(0, num_classes - 1), num_classes)
    classes = torch.arange(num_classes if checked else num_classes + 1, device=labels.device)
    members = labels[:, None] == classes
    in_x = members[: len(x)].sum(0, dtype=pooled.dtype)
    in_y = members[len(x) :].sum(0, dtype=pooled.dtype)
    alive = torch.minimum(in_x, in_y).clamp_(max=1)
    alive[num_classes:] = 0
    of_x, of_y = labels[: len(x)], labels[len(x) :]
    weights = torch.cat([(alive / in_x)[of_x], (alive / -in_y)[of_y]])
    return labels, (in_x + in_y).long(), weights


def _class_medians(
    distances: Tensor, labels: Tensor, sizes: Tensor, diagonal: bool = False
) -> Tensor:
    """Lower medians ``(C,)`` of the classes, after sorting all pairs by class and distance."""
    i, j, pairs = _pairs(len(labels), labels.device)
    distances, order = distances.flatten()[pairs].sort()
    class_of_pair = labels[i].where(labels[i] == labels[j], len(sizes))
    distances = distances[class_of_pair[order].argsort(stable=True)]
    counts = sizes * (sizes - 1) // 2
    rank = (counts - 1) // 2
    if diagonal:  # all of a class's matrix: its zeros first, then every pair twice
        rank = (sizes * sizes - 1) // 2 - sizes
        rank = torch.where(rank < 0, -1, rank // 2)
    position = (counts.cumsum(0) - counts + rank).clamp_(0, len(distances) - 1)
    return distances[position].masked_fill_(rank < 0, 0)


def _kernels(
    distances: Tensor, bandwidth: Tensor, scales: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Mean over the scales of exp(-d²/(s sigma)) - 1; 4 sigma times its slope by -d²."""
    total, slope = torch.zeros_like(distances), torch.zeros_like(distances)
    kernel = distances  # until the first scale
    last = anchor = math.inf
    for scale in sorted(scales, reverse=True):
        # exp costs far more than a square; up to 16th powers, as rounding grows with the power
        if anchor <= 16 * scale and math.frexp(last / scale)[0] == 0.5:
            for _ in range(round(math.log2(last / scale))):
                kernel.square_()
        else:
            kernel, anchor = (distances * (-1 / scale)).div_(bandwidth).exp_(), scale
        total.add_(kernel)
        slope.add_(kernel, alpha=4 / (scale * len(scales)))
        last = scale
    return total.sub_(len(scales)).div_(len(scales)), slope


def _mean_root(squares: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
    """Mean over the classes of the roots of ``squares``, and its derivative by each of them."""
    num_classes = settings.num_classes
    if settings.squared:
        mean = squares.sum().clamp_(min=0) / num_classes
        return mean, torch.full_like(squares, 1 / num_classes)
    zero = squares <= torch.finfo(squares.dtype).eps
    roots = squares.masked_fill_(zero, 0).sqrt_()
    return roots.sum() / num_classes, (0.5 / num_classes / roots).masked_fill_(zero, 0)


def _floored(bandwidth: Tensor, largest: Tensor) -> Tensor:
    """At least 128 eps of the ``largest`` squared distances, shape ``(C,)`` or ``(C, 1)``."""
    bandwidth = torch.maximum(bandwidth, largest * 128 * torch.finfo(largest.dtype).eps)
    return bandwidth.masked_fill(bandwidth == 0, 1)  # all features equal: any will do


def _squared_distances(centred: Tensor) -> Tensor:
    products = torch.bmm(centred, centred.mT)
    norms = products.diagonal(dim1=1, dim2=2)
    return torch.add(norms[:, None], products, alpha=-2).add_(norms[:, :, None]).clamp_(min=0)


def _graph_gradient(graph: Tensor, centred: Tensor) -> Tensor:
    graph.diagonal(dim1=1, dim2=2).sub_(graph.sum(2))
    return torch.bmm(graph, centred)


def _centred(features: Tensor) -> Tensor:
    # by a sample first, so that equal features give exact zeros whatever the mean rounds to
    features = features - features[:, :1]
    return features.sub_(features.mean(1, keepdim=True))


def _centred_by_class(features: Tensor, same: Tensor) -> Tensor:
    same = same.to(features)
    first = same.argmax(1)
    features = features - features[first]
    means = (same @ features).div_(same.sum(1, keepdim=True))
    return features.sub_(means[first])  # of one class exactly the same


@lru_cache(maxsize=16)
def _pairs(num_rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """i and j of the pairs i < j, and their positions in the flattened matrix."""
    i, j = torch.triu_indices(num_rows, num_rows, 1, device=device)
    return i, j, i * num_rows + j


def _pooled(x: Tensor, y: Tensor) -> Tensor:
    _checks.tensor("x", x, ("n", "D"))
    _checks.tensor("y", y, ("m", x.shape[1]), device=x.device)
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    return torch.cat([x.to(dtype), y.to(dtype)])


def _settings(
    pooled: Tensor,
    num_classes: int,
    scales: Sequence[float],
    bandwidth: float | Tensor | None,
    squared: bool,
) -> _Settings:
    _checks.instance("scales", scales, Sequence)
    _checks.integer("the number of scales", len(scales))
    checked = tuple(_checks.positive("each of scales", scale) for scale in scales)
    if isinstance(bandwidth, Tensor):
        _checks.tensor("bandwidth", bandwidth, (), (num_classes,), device=pooled.device)
        if _checks.on_host(bandwidth) and bool((bandwidth < 0).any()):
            raise ValueError(f"bandwidth must not be negative; got {bandwidth.tolist()}")
        bandwidth = bandwidth.detach().to(pooled).expand(num_classes)
    elif bandwidth is not None:
        bandwidth = pooled.new_full((num_classes,), _checks.positive("bandwidth", bandwidth))
    return _Settings(num_classes, checked, bandwidth, squared)
