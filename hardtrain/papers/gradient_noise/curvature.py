"""How sharp a minimum is, and how noisy its gradient: Hessian eigenvalue, gradient covariance."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from hardtrain import checks
from hardtrain.data.batches import Transform
from hardtrain.data.images import ImageDataset
from hardtrain.errors import ParameterError

_BASIS = 20  # Lanczos vectors that are kept
# a GPU's convolutions in TF32, torch's default, would be right to three digits only
_full_precision = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


class GradientNoiseScale(NamedTuple):
    """From the per-sample gradients of a set, in squared gradient units (nats per parameter)."""

    trace: float  # of their covariance, tr Σ
    squared_norm: float  # of their mean
    noise_scale: float  # trace / squared_norm: number of samples


@_full_precision
@torch.no_grad()  # but where a gradient is taken
def largest_eigenvalue(
    model: nn.Module,
    dataset: ImageDataset,
    transform: Transform,
    *,
    generator: Generator,
    tolerance: float = 1e-3,
    max_products: int = 500,
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
            a gradient.
        dataset: all of it is used; ``dataset.subset(n)`` is quicker.
        transform: its augmentation is left out.
        generator: draws the first vector; the result depends on it within ``tolerance``.
        tolerance: the result is that close to an eigenvalue, relative to it. Usually it is much
            closer: the residual is bounded, and the error is of its second order. In float32 not
            below about 1e-6.
        max_products: limit for the number of products; a few dozens are usual.
        batch_size: number of samples in one graph; changes the result by rounding alone.

    Raises:
        ParameterError: names the argument; also if ``max_products`` does not suffice, or if the
            Hessian of ``model`` is not finite.
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
        >>> found = largest_eigenvalue(model, train, transform, generator=start)
        >>> round(found / known.item(), 3)
        1.0
    """
    checks.number("tolerance", tolerance, 0, above=True, below=1)
    checks.integer("max_products", max_products, 1)
    checks.integer("batch_size", batch_size, 1)
    model, named = _evaluation_copy(model)
    parameters = list(named.values())
    dataset = dataset.to(parameters[0].device)
    size = sum(parameter.numel() for parameter in parameters)

    def product(vector: np.ndarray) -> np.ndarray:
        vector = torch.as_tensor(vector).to(parameters[0])
        batches = _batches(dataset, transform, batch_size)
        return _hessian_product(model, parameters, batches, vector, len(dataset)).cpu().numpy()

    start = torch.randn(size, generator=generator, device=generator.device)
    start = start.to("cpu", parameters[0].dtype).numpy()
    return _largest_eigenvalue(product, start, tolerance, max_products)


@_full_precision
@torch.no_grad()
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
        transform: its augmentation is left out.
        block_size: number of per-sample gradients that are in memory at once.

    Returns:
        ``GradientNoiseScale(trace, squared_norm, noise_scale)``. B_simple is the batch size at
        which the noise is as large as the gradient; inf where the gradient is exactly 0.

    Raises:
        ParameterError: ``block_size`` is no integer >= 1, or no parameter wants a gradient.

    Source:
        Jaiswal, Taura, equations 3 and 5 (read at θ_t, with the transpose of an outer product).
        McCandlish et al., arXiv 1812.06162: B_simple; they estimate both its terms from batches.

    Example:
        >>> from hardtrain import load_dataset
        >>> train = load_dataset("digits", "train").subset(100)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> found = gradient_noise_scale(model, train, Transform.of(train))
        >>> found.noise_scale == found.trace / found.squared_norm
        True
    """
    checks.integer("block_size", block_size, 1)
    model, named = _evaluation_copy(model)
    parameters = list(named.values())
    dataset = dataset.to(parameters[0].device)
    means = [torch.zeros_like(parameter) for parameter in parameters]
    for inputs, targets in _batches(dataset, transform, block_size):
        with torch.enable_grad():
            loss = cross_entropy(model(inputs), targets, reduction="sum") / len(dataset)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        torch._foreach_add_(means, list(gradients))
    values = {name: parameter.detach() for name, parameter in named.items()}

    def sample_loss(values: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, values, image[None]), target[None])

    sample_gradients = vmap(grad(sample_loss), in_dims=(None, 0, 0))
    squares = []
    # a second pass, not the mean square minus the squared mean, which would cancel
    for inputs, targets in _batches(dataset, transform, block_size):
        block = sample_gradients(values, inputs, targets)
        squares += [
            (block.pop(name) - mean).square().sum() for name, mean in zip(named, means, strict=True)
        ]
    trace = torch.stack(squares).cpu().double().sum().item() / len(dataset)
    norms = torch.stack([mean.square().sum() for mean in means])
    squared_norm = norms.cpu().double().sum().item()
    ratio = math.inf if trace else math.nan
    scale = trace / squared_norm if squared_norm else ratio
    return GradientNoiseScale(trace, squared_norm, scale)


def noise_term(trace: float, lr: float, batch_size: int) -> float:
    r"""Root mean square length of the noise in one step of plain SGD, in parameter units.

    .. math:: \sqrt{E \left\| \tfrac{\eta}{\sqrt{B}} \epsilon \right\|^2}
              = \eta \sqrt{\frac{\operatorname{tr} \Sigma}{B}}, \quad \epsilon \sim N(0, \Sigma)

    The last term of equation 7 (Jaiswal, Taura). It falls with the square root of B at a fixed
    rate; with η / B fixed, as in the paper's runs, it grows with it. Exact for samples drawn with
    replacement; B distinct ones of N make less noise, by the factor sqrt((N - B) / (N - 1)).

    Args:
        trace: tr Σ >= 0, from :func:`gradient_noise_scale`.
        lr: η >= 0.
        batch_size: B >= 1.

    Raises:
        ParameterError: an argument is not of that kind.

    Example:
        >>> [round(noise_term(4.0, lr, size), 4) for lr, size in [(0.01, 32), (0.04, 128)]]
        [0.0035, 0.0071]
    """
    checks.number("trace", trace, 0)
    checks.number("lr", lr, 0)
    checks.integer("batch_size", batch_size, 1)
    return lr * math.sqrt(trace / batch_size)


def _evaluation_copy(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy in evaluation mode, and those of its parameters that want a gradient, by name."""
    model = copy.deepcopy(model).eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ParameterError("model has no parameter that wants a gradient")
    return model, parameters


def _batches(
    dataset: ImageDataset, transform: Transform, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    transform = transform.without_augmentation()
    for images, labels in zip(
        dataset.images.split(batch_size), dataset.labels.split(batch_size), strict=True
    ):
        yield transform(images), labels


def _hessian_product(
    model: nn.Module,
    parameters: list[Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    vector: Tensor,
    num_samples: int,
) -> Tensor:
    """H times ``vector (P,)``: the gradient of the gradient's component along it."""
    pieces = vector.split([parameter.numel() for parameter in parameters])
    result = torch.zeros_like(vector)
    for inputs, targets in batches:
        with torch.enable_grad():
            loss = cross_entropy(model(inputs), targets, reduction="sum") / num_samples
            gradients = torch.autograd.grad(
                loss, parameters, create_graph=True, materialize_grads=True
            )
            slope = sum(
                (gradient.flatten() * piece).sum()
                for gradient, piece in zip(gradients, pieces, strict=True)
            )
            found = torch.autograd.grad(slope, parameters, materialize_grads=True)
        result += torch.cat([part.flatten() for part in found])
    return result


def _largest_eigenvalue(
    product: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    tolerance: float,
    max_products: int,
) -> float:
    """Of a symmetric matrix that is known through its products with vectors ``(P,)``."""
    size, num_products = len(start), 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal num_products
        num_products += 1
        if num_products > max_products:
            raise ParameterError(
                f"max_products = {max_products} did not suffice for tolerance = {tolerance}"
            )
        found = product(vector)
        if not np.isfinite(found).all():
            raise ParameterError("model has a Hessian that is not finite")
        return found

    if size <= _BASIS:  # ARPACK wants more
        matrix = np.stack([counted(row) for row in np.eye(size, dtype=start.dtype)])
        return float(np.linalg.eigvalsh(matrix)[-1])
    if not counted(start).any():  # of a random vector only where H = 0, which ARPACK refuses
        return 0.0
    operator = LinearOperator((size, size), counted, dtype=start.dtype)
    # "LA" is largest algebraic, not in magnitude; of the restarts the products are the limit
    found = eigsh(
        operator,
        k=1,
        which="LA",
        v0=start,
        ncv=_BASIS,
        tol=tolerance,
        maxiter=max_products,
        return_eigenvectors=False,
    )
    return float(found[0])
