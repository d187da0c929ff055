"""Distribution matching: two mini-batches should look alike to the last hidden layer.

Li, Pan, Li, Zhu, "Improve SGD Training via Aligning Mini-batches" (ITDM), arXiv 2002.09917.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    scales: Sequence[float] = (1, 2, 4, 8, 16),
    bandwidth: float | Tensor | None = None,
    squared: bool = False,
) -> Tensor:
    r"""Maximum mean discrepancy between two sets of features: the match of ITDM-j.

    .. math:: \mathrm{MMD}^2 = \frac{1}{n^2} \sum_{i,j} k(x_i, x_j)
              + \frac{1}{m^2} \sum_{i,j} k(y_i, y_j) - \frac{2}{nm} \sum_{i,j} k(x_i, y_j), \quad
              k(u, v) = \frac{1}{|S|} \sum_{s \in S} \exp\Bigl(-\frac{\|u - v\|^2}{s \sigma}\Bigr)

    Args:
        x: features, shape ``(n, D)``, float.
        y: features, shape ``(m, D)``, float.
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
        ValueError: shapes that do not fit, no samples, sets on different devices, scales or a
            bandwidth that are not positive.
        TypeError: an argument of the wrong type.

    Source:
        Section 3.1 (the second index i of its double sums is j here), eqs. (4) and (7). The
        printed root has no gradient at 0; here that is 0, and no epsilon is added. The authors'
        code takes the median over the full matrix: see :func:`median_bandwidth`.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [4.0]])
        >>> mmd(x, y), mmd(x, x)
        (tensor(0.9154), tensor(0.))
    """
    _check_features(x, y)
    scales, bandwidth = _checked_scales(scales), _checked_bandwidth(bandwidth, x, [()])
    with torch.autocast(x.device.type, enabled=False):
        pooled = _pool(x, y)
        with torch.no_grad():
            weights = torch.cat(
                [pooled.new_full((len(x),), 1 / len(x)), pooled.new_full((len(y),), -1 / len(y))]
            )
            options = bandwidth, scales, squared, pooled.requires_grad
            value, gradient = _match_groups(pooled[None], weights[None], None, 1, *options)
        return value if gradient is None else _WithGradient.apply(pooled, value, gradient[0])


def class_conditional_mmd(
    x: Tensor,
    x_labels: Tensor,
    y: Tensor,
    y_labels: Tensor,
    num_classes: int,
    *,
    scales: Sequence[float] = (1, 2, 4, 8, 16),
    bandwidth: float | Tensor | None = None,
    squared: bool = False,
) -> Tensor:
    r"""Mean over the classes of the MMD between both sets' samples of one class: ITDM-c's match.

    .. math:: \mathrm{Match}_c = \frac{1}{K} \sum_{k=1}^{K} \mathrm{MMD}(H_1^k, H_2^k)

    All classes at once, in one of two forms with the same result. On CPU each class is padded to
    the size of the largest. On a GPU, or if one class outweighs the others, pairs of different
    classes are masked: that never waits for the device.

    Args:
        x: features, shape ``(n, D)``, float.
        x_labels: ``(n,)``, int, in ``[0, K)``. On a GPU that is not checked, because it would
            wait for the device: samples with other labels do not count.
        y: features, shape ``(m, D)``, float.
        y_labels: ``(m,)``, likewise.
        num_classes: K >= 1, of the task: a class that is absent on either side adds 0.
        scales: as in :func:`mmd`.
        bandwidth: as in :func:`mmd`, by default a median for each class; or a tensor ``(K,)``.
        squared: as in :func:`mmd`, for each class.

    Returns:
        Scalar, shape ``()``, as in :func:`mmd`; features are centred class by class.

    Raises:
        ValueError: as in :func:`mmd`; labels of the wrong shape or, on CPU, outside [0, K).
        TypeError: an argument of the wrong type.

    Source:
        Eqs. (5) and (6); eq. (5) prints m₁ for the size of the second batch, too. The paper does
        not say what a class adds that a batch lacks; in the authors' code none is lacking.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [4.0]])
        >>> labels = torch.tensor([0, 1])
        >>> class_conditional_mmd(x, labels, y, labels, num_classes=3)
        tensor(0.5033)
    """
    num_classes = _check_labelled(x, x_labels, y, y_labels, num_classes)
    scales = _checked_scales(scales)
    bandwidth = _checked_bandwidth(bandwidth, x, [(), (num_classes,)])
    on_cpu = x.device.type == "cpu"
    with torch.autocast(x.device.type, enabled=False):
        pooled = _pool(x, y)
        with torch.no_grad():
            labels, sizes, weights = _classes(pooled, x_labels, y_labels, num_classes, on_cpu)
            match = _match_padded if on_cpu and _padding_pays(sizes) else _match_masked
            options = num_classes, bandwidth, scales, squared, pooled.requires_grad
            value, gradient = match(pooled, labels, weights, sizes, *options)
        return value if gradient is None else _WithGradient.apply(pooled, value, gradient)


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
        x: features, shape ``(n, D)``, float.
        y: features, shape ``(m, D)``, float.
        x_labels: ``(n,)``, int; with labels there is one median for each class.
        y_labels: ``(m,)``.
        num_classes: K.
        diagonal: False: over the pairs i < j, the default of this module. True: over the full
            matrix, as in the authors' code; its zero diagonal makes :math:`\sigma` 0 for a class
            with one sample on each side.

    Returns:
        Shape ``()``, or ``(K,)`` with labels, 0 for a class without pairs. If their number is
        even, the lower of the two in the middle. It has no gradient.

    Raises:
        ValueError, TypeError: as :func:`class_conditional_mmd`.

    Source:
        The paper names the median heuristic without saying over which pairs.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])
        >>> median_bandwidth(x, y), median_bandwidth(x, y, diagonal=True)
        (tensor(4.), tensor(1.))
    """
    _check_features(x, y)
    on_cpu = x.device.type == "cpu"
    labelled = not (x_labels is None and y_labels is None and num_classes is None)
    if labelled:
        num_classes = _check_labelled(x, x_labels, y, y_labels, num_classes)
    with torch.autocast(x.device.type, enabled=False), torch.no_grad():
        pooled = _pool(x, y)
        if labelled:
            labels, sizes, _ = _classes(pooled, x_labels, y_labels, num_classes, on_cpu)
            centred = _centred_by_class(pooled, labels[:, None] == labels)
            distances = _squared_distances(centred[None])[0]
            return _class_medians(distances, labels, sizes, diagonal)[:num_classes]
        distances = _squared_distances(_centred(pooled[None])).flatten()
        return (distances if diagonal else distances[_pairs(len(pooled), x.device)[2]]).median()


class _WithGradient(torch.autograd.Function):
    """``value``, whose gradient with respect to ``pooled`` was computed along with it."""

    @staticmethod
    def forward(ctx, pooled: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        return grad_output * ctx.saved_tensors[0], None, None


# With weights w = 1/n for samples of x and -1/m for those of y, which sum to 0,
#     MMD² = sum_ij w_i w_j k_ij = 2 sum_{i<j} w_i w_j (k_ij - 1),
# which is exactly 0 for equal features. With B_ij = 4 w_i w_j (-dk_ij/dd²_ij), the gradient by the
# features z is (B - diag(B 1)) z: one matrix product. Both are computed in the forward pass.


def _match_groups(groups, weights, sizes, num_classes, bandwidth, scales, squared, with_gradient):
    """The match of groups ``(C, P, D)``, weights ``(C, P)``, and its gradient by the groups.

    Of a group the first ``sizes (C, 1)`` rows count, by default all. Only pairs i < j are computed.
    """
    num_rows = groups.shape[1]
    centred = _centred(groups)
    i, j, pairs = _pairs(num_rows, groups.device)
    distances = _squared_distances(centred).flatten(1).index_select(1, pairs)
    if bandwidth is None and sizes is None:
        bandwidth = distances.median()
    elif bandwidth is None:  # of i < j both count if j does
        valid = distances.masked_fill(j >= sizes, math.nan)
        bandwidth = valid.nanmedian(1, keepdim=True).values.nan_to_num_()  # 0 without pairs
    elif isinstance(bandwidth, Tensor):
        bandwidth = bandwidth.reshape(-1, 1)
    bandwidth = _floored(bandwidth, distances.amax(1, keepdim=True))
    kernel, slope = _kernels(distances, bandwidth, scales)
    pair_weights = weights.index_select(1, i) * weights.index_select(1, j)
    squares = kernel.mul_(pair_weights).sum(1, keepdim=True) * 2
    value, factor = _mean_root(squares, num_classes, squared)
    if not with_gradient:
        return value, None
    edges = slope.mul_(pair_weights).mul_(factor / bandwidth)
    graph = edges.new_zeros(len(groups), num_rows**2).index_copy_(1, pairs, edges)
    graph = graph.view(len(groups), num_rows, num_rows)
    return value, _graph_gradient(graph + graph.mT, centred)


def _match_padded(pooled, labels, weights, sizes, num_classes, *options):
    """One group ``(P, D)`` for each class, P the size of the largest."""
    order = labels.argsort(stable=True)
    sizes = sizes[:, None]
    ends = sizes.cumsum(0)
    row = torch.arange(int(sizes.max()))
    # padding repeats the last of its class, with weight 0
    members = order[torch.minimum(ends - sizes + row, ends - 1).clamp_(min=0)]
    group_weights = weights[members] * (row < sizes)
    members = members.flatten()
    groups = pooled.index_select(0, members).view(*group_weights.shape, -1)
    value, gradient = _match_groups(groups, group_weights, sizes, num_classes, *options)
    if gradient is None:
        return value, None
    return value, torch.zeros_like(pooled).index_add_(0, members, gradient.flatten(0, 1))


def _match_masked(
    pooled, labels, weights, sizes, num_classes, bandwidth, scales, squared, with_gradient
):
    """The full matrix, where pairs of different classes have weight 0."""
    same = labels[:, None] == labels
    centred = _centred_by_class(pooled, same)[None]
    distances = _squared_distances(centred)[0]
    members = labels[:, None] == torch.arange(len(sizes), device=labels.device)
    largest = ((distances * same).amax(1, keepdim=True) * members).amax(0)
    if bandwidth is None:
        bandwidth = _class_medians(distances, labels, sizes)
    elif isinstance(bandwidth, Tensor):
        bandwidth = pad(bandwidth.expand(num_classes), (0, len(sizes) - num_classes))
    bandwidth = _floored(bandwidth, largest)[labels, None]
    kernel, slope = _kernels(distances, bandwidth, scales)
    pair_weights = (weights[:, None] * weights).mul_(same)
    pair_weights.diagonal().zero_()
    squares = (kernel.mul_(pair_weights).sum(1, keepdim=True) * members).sum(0)
    value, factor = _mean_root(squares, num_classes, squared)
    if not with_gradient:
        return value, None
    graph = slope.mul_(pair_weights).mul_(factor[labels, None] / bandwidth)
    return value, _graph_gradient(graph[None], centred)[0]


def _padding_pays(sizes: Tensor) -> bool:
    return len(sizes) * int(sizes.max()) ** 2 <= int(sizes.sum()) ** 2


def _classes(pooled, x_labels, y_labels, num_classes, checked):
    """Labels ``(N,)``, sizes ``(C,)``, weights ``(N,)``.

    C is K, or K + 1 if labels are not ``checked``: those outside [0, K) are class K, of weight 0.
    """
    labels = torch.cat([x_labels.long(), y_labels.long()])
    if not checked:
        labels = labels.where(labels == labels.clamp(0, num_classes - 1), num_classes)
    classes = torch.arange(num_classes + (not checked), device=labels.device)
    members = labels[:, None] == classes
    sides = len(x_labels), len(y_labels)
    in_x, in_y = (side.sum(0, dtype=pooled.dtype) for side in members.split(sides))
    alive = torch.minimum(in_x, in_y).clamp_(max=1)
    if not checked:
        alive[num_classes:] = 0
    of_x, of_y = labels.split(sides)
    weights = torch.cat([(alive / in_x)[of_x], (alive / -in_y)[of_y]])
    return labels, (in_x + in_y).long(), weights


def _class_medians(distances, labels, sizes, diagonal=False):
    """Lower medians ``(C,)`` of the classes, after sorting all pairs by class and distance."""
    i, j, pairs = _pairs(len(labels), labels.device)
    distances, order = distances.flatten()[pairs].sort()
    classes = labels[i].where(labels[i] == labels[j], len(sizes))
    distances = distances[classes[order].argsort(stable=True)]
    counts = sizes * (sizes - 1) // 2
    rank = (counts - 1) // 2
    if diagonal:  # all of a class's matrix: its zeros first, then every pair twice
        rank = (sizes * sizes - 1) // 2 - sizes
        rank = torch.where(rank < 0, -1, rank // 2)
    position = (counts.cumsum(0) - counts + rank).clamp_(0, len(distances) - 1)
    return distances[position].masked_fill_(rank < 0, 0)


def _kernels(distances, bandwidth, scales):
    """Mean over the scales of exp(-d²/(s sigma)) - 1; 4 sigma times its slope by -d²."""
    kernel = total = slope = None
    last = anchor = math.inf
    for scale in sorted(scales, reverse=True):
        # exp costs far more than a square; up to 16th powers, as rounding grows with the power
        if anchor <= 16 * scale and math.frexp(last / scale)[0] == 0.5:
            for _ in range(round(math.log2(last / scale))):
                kernel.square_()
        else:
            kernel, anchor = (distances * (-1 / scale)).div_(bandwidth).exp_(), scale
        total = kernel.clone() if total is None else total.add_(kernel)
        part = 4 / (scale * len(scales))
        slope = kernel * part if slope is None else slope.add_(kernel, alpha=part)
        last = scale
    return total.sub_(len(scales)).div_(len(scales)), slope


def _mean_root(squares: Tensor, num_classes: int, squared: bool) -> tuple[Tensor, Tensor]:
    """Mean over the classes of the roots of ``squares``, and its derivative by each of them."""
    if squared:
        mean = squares.sum().clamp_(min=0) / num_classes
        return mean, torch.full_like(squares, 1 / num_classes)
    zero = squares <= torch.finfo(squares.dtype).eps
    roots = squares.masked_fill_(zero, 0).sqrt_()
    return roots.sum() / num_classes, (0.5 / num_classes / roots).masked_fill_(zero, 0)


def _floored(bandwidth: float | Tensor, largest: Tensor) -> Tensor:
    """At least 128 eps of the ``largest`` squared distances, shape ``(C,)`` or ``(C, 1)``."""
    if not isinstance(bandwidth, Tensor):
        bandwidth = torch.full_like(largest, bandwidth)
    bandwidth = torch.maximum(bandwidth.to(largest), largest * 128 * torch.finfo(largest.dtype).eps)
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


def _pairs(num_rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """i and j of the pairs i < j, and their positions in the flattened matrix."""
    i, j = torch.triu_indices(num_rows, num_rows, 1, device=device)
    return i, j, i * num_rows + j


def _pool(x: Tensor, y: Tensor) -> Tensor:
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    return torch.cat([x.to(dtype), y.to(dtype)])


def _check_features(x: Tensor, y: Tensor) -> None:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a float tensor; got {what}")
        if value.ndim != 2 or 0 in value.shape:
            raise ValueError(
                f"{name} must have shape (samples, D), both >= 1; got {tuple(value.shape)}"
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"y must have as many features as x, {x.shape[1]}; got {y.shape[1]}")
    if x.device != y.device:
        raise ValueError(f"y must be on the device of x, {x.device}; got {y.device}")


def _check_labelled(x, x_labels, y, y_labels, num_classes) -> int:
    _check_features(x, y)
    if isinstance(num_classes, bool) or not isinstance(num_classes, Integral):
        raise TypeError(f"num_classes must be an integer; got {num_classes!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1; got {num_classes}")
    for name, labels, features in (("x_labels", x_labels, x), ("y_labels", y_labels, y)):
        integer = isinstance(labels, Tensor) and not (
            labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        )
        if not integer:
            what = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"{name} must be an integer tensor; got {what}")
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"{name} must have shape ({len(features)},), one per sample; "
                f"got {tuple(labels.shape)}"
            )
        if labels.device != features.device:
            raise ValueError(f"{name} must be on {features.device}; got {labels.device}")
        if labels.device.type == "cpu":
            values = labels.tolist()
            for value in (min(values), max(values)):
                if not 0 <= value < num_classes:
                    raise ValueError(
                        f"{name} must be in [0, {num_classes}) (num_classes); got {value}"
                    )
    return int(num_classes)


def _checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    if isinstance(scales, Tensor | str) or not isinstance(scales, Sequence):
        raise TypeError(f"scales must be a sequence of numbers; got {type(scales).__name__}")
    if len(scales) == 0:
        raise ValueError("scales must hold at least one number; got none")
    return tuple(_positive("each of scales", scale) for scale in scales)


def _checked_bandwidth(bandwidth, x: Tensor, shapes: list[tuple[int, ...]]):
    if bandwidth is None:
        return None
    if not isinstance(bandwidth, Tensor):
        return _positive("bandwidth", bandwidth)
    if not bandwidth.is_floating_point():
        raise TypeError(f"bandwidth must be a number or a float tensor; got {bandwidth.dtype}")
    if tuple(bandwidth.shape) not in shapes:
        allowed = " or ".join(map(str, shapes))
        raise ValueError(f"bandwidth must have shape {allowed}; got {tuple(bandwidth.shape)}")
    if bandwidth.device != x.device:
        raise ValueError(f"bandwidth must be on {x.device}; got {bandwidth.device}")
    if bandwidth.device.type == "cpu" and bool((bandwidth < 0).any()):
        raise ValueError(f"bandwidth must not be negative; got {bandwidth.tolist()}")
    return bandwidth.detach()


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not 0 < value < math.inf:  # also true for NaN
        raise ValueError(f"{name} must be finite and > 0; got {value}")
    return float(value)
