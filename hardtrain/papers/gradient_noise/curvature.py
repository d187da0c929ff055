"""How sharp a minimum is, and how noisy its gradient: Hessian eigenvalue, gradient covariance."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.functional import cross_entropy

from hardtrain.data.batches import Transform
from hardtrain.data.images import ImageDataset
from hardtrain.training.randomness import repeatable_kernels

_BASIS = 20  # Lanczos vectors that are kept
_RESTARTS = 50  # of at most 19 products each; one or two are usual


class GradientNoiseScale(NamedTuple):
    """From the per-sample gradients of a set, in squared gradient units (nats per parameter)."""

    trace: float  # of their covariance, tr Σ
    squared_norm: float  # of their mean
    noise_scale: float  # trace / squared_norm: number of samples


@repeatable_kernels()  # in TF32, torch's default on a GPU, it would be right to three digits
def largest_eigenvalue(
    model: nn.Module,
    dataset: ImageDataset,
    transform: Transform,
    *,
    generator: Generator,
    tolerance: float = 1e-3,
    batch_size: int = 500,
) -> float:
    r"""The largest (most positive) eigenvalue of the Hessian of the mean cross-entropy of a set.

    .. math:: \max_j \lambda_j(H), \quad
              H = \nabla_\theta^2 \frac{1}{N} \sum_{i=1}^N \ell(\theta, x_i, y_i)

    By Lanczos iteration with reorthogonalisation and restarts (ARPACK), from products of H with
    vectors. Each is a pass over the set that costs about two of training. Beside the graph of one
    batch, 20 vectors of the parameters' size are kept, on the CPU.

    Args:
        model: not changed, on any device; float32 or float64. Evaluated in evaluation mode:
            batch-norm uses its running statistics, as constants. θ are the parameters that want
            a gradient, of which there must be two.
        dataset: all of it is used; ``dataset.subset(n)`` is quicker.
        transform: must not augment.
        generator: draws the first vector; the result depends on it within ``tolerance``.
        tolerance: the result is that close to an eigenvalue, relative to it. Usually it is much
            closer: the residual is bounded, and the error is of its second order. In float32 not
            below about 1e-6.
        batch_size: number of samples in one graph; changes the result by rounding alone.

    Returns:
        The eigenvalue; nan where the Hessian is not finite, or the iteration does not converge.

    Raises:
        RuntimeError: torch has no second derivative of a layer: of hard sigmoid, so of the
            network ``mobilenetv3_small``.

    Source:
        Figure 3 of Jaiswal, Taura, from Jastrzebski et al., "Finding Flatter Minima with SGD".
        They call it the spectral norm, which it is where no negative eigenvalue is larger in
        magnitude, as at a minimum.

    Example:
        >>> from hardtrain import load_dataset
        >>> train = load_dataset("digits", "train").subset(100)
        >>> transform = Transform.of(train)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
        >>> weight = nn.init.zeros_(model[1].weight)  # there H is known
        >>> inputs = transform(train.images).flatten(1)
        >>> known = torch.linalg.eigvalsh(inputs.T @ inputs / 100)[-1] / 10
        >>> start = torch.Generator().manual_seed(0)
        >>> value = largest_eigenvalue(model, train, transform, generator=start)
        >>> round(value / known.item(), 3)
        1.0
    """
    model, values = _evaluation_copy(model)
    flat = _flat(values)
    sizes = [value.numel() for value in values.values()]
    gradient = grad(partial(_loss, model, len(dataset)))

    def product(vector: np.ndarray) -> np.ndarray:
        pieces = torch.as_tensor(vector).to(flat).split(sizes)
        pairs = zip(values.items(), pieces, strict=True)
        direction = {name: piece.view_as(value) for (name, value), piece in pairs}
        result = torch.zeros_like(flat)
        for inputs, targets in _batches(dataset, transform, batch_size, flat.device):
            transposed = vjp(partial(gradient, inputs=inputs, targets=targets), values)[1]
            result += _flat(transposed(direction)[0])
        return result.cpu().numpy()

    start = torch.randn(len(flat), generator=generator, device=generator.device)
    return _largest_eigenvalue(product, start.to("cpu", flat.dtype).numpy(), tolerance)


@repeatable_kernels()
def gradient_noise_scale(
    model: nn.Module, dataset: ImageDataset, transform: Transform, *, block_size: int = 32
) -> GradientNoiseScale:
    r"""How much the gradients of single samples scatter about the gradient of the whole set.

    .. math:: \bar{g} = \frac{1}{N} \sum_{i=1}^N g_i, \quad
              \operatorname{tr} \Sigma = \frac{1}{N} \sum_{i=1}^N \|g_i - \bar{g}\|^2, \quad
              B_{simple} = \frac{\operatorname{tr} \Sigma}{\|\bar{g}\|^2}

    The set is taken as the whole population, so it is 1/N and no estimate: the mean of B samples
    drawn from the set with replacement has exactly the covariance Σ / B about ḡ. For the
    covariance of the distribution behind the data, multiply by N / (N - 1).

    Args:
        model: not changed, on any device. Evaluated in evaluation mode, as in
            :func:`largest_eigenvalue`: with a batch's own statistics a sample has no gradient of
            its own. θ are the parameters that want a gradient.
        dataset: all of it is used; ``dataset.subset(n)`` is quicker.
        transform: must not augment.
        block_size: number of per-sample gradients that are in memory at once.

    Returns:
        ``GradientNoiseScale(trace, squared_norm, noise_scale)``. B_simple is the batch size at
        which the noise is as large as the gradient; inf where the gradient is exactly 0.

    Source:
        Jaiswal, Taura, equations 3 and 5 (read at θ_t, with the transpose of an outer product).
        McCandlish et al., arXiv 1812.06162: B_simple; they estimate both its terms from batches.

    Example:
        >>> from hardtrain import load_dataset
        >>> train = load_dataset("digits", "train").subset(100)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> scale = gradient_noise_scale(model, train, Transform.of(train))
        >>> scale.noise_scale == scale.trace / scale.squared_norm
        True
    """
    model, values = _evaluation_copy(model)
    batches = partial(_batches, dataset, transform, block_size, next(iter(values.values())).device)
    gradient = grad(partial(_loss, model, len(dataset)))
    mean = {name: torch.zeros_like(value) for name, value in values.items()}
    for inputs, targets in batches():
        for name, part in gradient(values, inputs=inputs, targets=targets).items():
            mean[name] += part
    sample_gradients = vmap(grad(partial(_loss, model, 1)), in_dims=(None, 0, 0))
    squares = []
    # a second pass, not the mean square minus the squared mean, which would cancel
    for inputs, targets in batches():
        block = sample_gradients(values, inputs[:, None], targets[:, None])
        squares += [(block.pop(name) - part).square().sum() for name, part in mean.items()]
    trace = torch.stack(squares).double().sum() / len(dataset)
    squared_norm = torch.stack([part.square().sum() for part in mean.values()]).double().sum()
    numbers = trace, squared_norm, trace / squared_norm
    return GradientNoiseScale(*(number.item() for number in numbers))


def noise_term(trace, lr: float, batch_size: int):
    r"""Root mean square length of the noise in one step of plain SGD, in parameter units.

    .. math:: \sqrt{E \left\| \tfrac{\eta}{\sqrt{B}} \epsilon \right\|^2}
              = \eta \sqrt{\frac{\operatorname{tr} \Sigma}{B}}, \quad \epsilon \sim N(0, \Sigma)

    The last term of equation 7 (Jaiswal, Taura). It falls with the square root of B at a fixed
    rate; with η / B fixed, as in the paper's runs, it grows with it. Exact for samples drawn with
    replacement; B distinct ones of N make less noise, by the factor sqrt((N - B) / (N - 1)).

    Args:
        trace: tr Σ >= 0, from :func:`gradient_noise_scale`; a number or an array.
        lr: η >= 0.
        batch_size: B >= 1.

    Example:
        >>> [round(noise_term(4.0, lr, size), 4) for lr, size in [(0.01, 32), (0.04, 128)]]
        [0.0035, 0.0071]
    """
    return lr * (trace / batch_size) ** 0.5


def _evaluation_copy(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy in evaluation mode, and the values of its parameters that want a gradient."""
    model = copy.deepcopy(model).eval()
    return model, {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}


def _flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def _loss(
    model: nn.Module, num_samples: int, values: dict[str, Tensor], inputs: Tensor, targets: Tensor
) -> Tensor:
    """Share of a batch in the mean cross-entropy of so many samples, as a function of θ."""
    logits = functional_call(model, values, inputs)
    return cross_entropy(logits, targets, reduction="sum") / num_samples


def _batches(
    dataset: ImageDataset, transform: Transform, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    dataset = dataset.to(device)
    images, labels = (part.split(batch_size) for part in (dataset.images, dataset.labels))
    return zip(map(transform, images), labels, strict=True)


def _largest_eigenvalue(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, tolerance: float
) -> float:
    """Of a symmetric matrix that is known through its products with vectors ``(P,)``."""
    image = product(start)
    if not np.isfinite(image).all():
        return math.nan
    if not image.any():  # of a random vector only where H = 0, which ARPACK refuses
        return 0.0
    operator = LinearOperator((len(start), len(start)), product, dtype=start.dtype)
    try:  # "LA" is largest algebraic, not in magnitude
        return eigsh(
            operator,
            k=1,
            which="LA",
            v0=start,
            ncv=min(_BASIS, len(start)),
            tol=tolerance,
            maxiter=_RESTARTS,
            return_eigenvectors=False,
        ).item()
    except ArpackNoConvergence:
        return math.nan
