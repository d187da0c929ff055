"""Distribution matching against slow, obvious references."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hardtrain import class_conditional_mmd, mmd
from hardtrain.strategies import distribution_matching
from hardtrain.strategies.distribution_matching import (
    median_bandwidth,
    plain_class_conditional_mmd,
    plain_mmd,
)

SCALES = (1, 2, 4, 8, 16)
FORMS = {
    "padded": distribution_matching._match_padded,
    "masked": distribution_matching._match_masked,
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Both forms of the class-conditional match, on CPU."""
    force(request.param, monkeypatch)
    return request.param


def force(form, monkeypatch):
    """Only this form of the class-conditional match is used from now on."""
    chosen = FORMS[form]
    for name in ("_match_padded", "_match_masked"):
        monkeypatch.setattr(distribution_matching, name, chosen)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features(n, m, dim, *, seed=0, dtype=torch.float64):
    g = generator(seed)
    x = torch.randn(n, dim, generator=g, dtype=torch.float64)
    y = 1.3 * torch.randn(m, dim, generator=g, dtype=torch.float64) + 0.5
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def labels_of(n, m, num_classes, seed=0):
    g = generator(seed + 1)
    return tuple(torch.randint(num_classes, (size,), generator=g) for size in (n, m))


def pair_median(points):
    """Lower median over the pairs i < j, from a sorted list."""
    values = sorted(
        sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True))
        for j in range(len(points))
        for i in range(j)
    )
    return values[(len(values) - 1) // 2]


def looped(x, y, scales=SCALES, bandwidth=None, squared=False):
    """Value and gradients from double loops over lists of numbers."""
    x, y = x.tolist(), y.tolist()
    n, m = len(x), len(y)
    points = x + y
    weights = [1 / n] * n + [-1 / m] * m
    sigma = pair_median(points) if bandwidth is None else bandwidth
    total, gradient = 0.0, [[0.0] * len(points[0]) for _ in points]
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            difference = [p - q for p, q in zip(a, b, strict=True)]
            distance = sum(d * d for d in difference)
            for scale in scales:
                width = scale * sigma
                kernel = math.exp(-distance / width) / len(scales)
                total += weights[i] * weights[j] * kernel
                for d, value in enumerate(difference):  # eq. (7), by both arguments
                    slope = -2 * weights[i] * weights[j] * kernel * value / width
                    gradient[i][d] += slope
                    gradient[j][d] -= slope
    factor = 1.0 if squared else 0.5 / math.sqrt(total)
    gradient = factor * torch.tensor(gradient, dtype=torch.float64)
    return (total if squared else math.sqrt(total)), gradient[:n], gradient[n:]


def looped_by_class(x, x_labels, y, y_labels, num_classes, **options):
    value, gradients = 0.0, (torch.zeros_like(x), torch.zeros_like(y))
    for c in range(num_classes):
        in_x, in_y = x_labels == c, y_labels == c
        if in_x.any() and in_y.any():
            part, *parts = looped(x[in_x], y[in_y], **options)
            value += part / num_classes
            for gradient, mask, p in zip(gradients, (in_x, in_y), parts, strict=True):
                gradient[mask] += p / num_classes
    return value, *gradients


def check(loss, x, y, reference, tolerance=1e-10):
    value, grad_x, grad_y = reference
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=tolerance)
    grads = torch.autograd.grad(loss, (x, y))
    for grad, expected in zip(grads, (grad_x, grad_y), strict=True):
        torch.testing.assert_close(
            grad.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
        )


# joint


def test_mmd_of_two_points_by_hand():
    # one pair: sigma is its squared distance, MMD² = 2 - 2 mean exp(-1/s)
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 6.0]])
    kernel = sum(math.exp(-1 / s) for s in SCALES) / 5
    assert mmd(x, y).item() == pytest.approx(math.sqrt(2 - 2 * kernel), rel=1e-6)
    assert mmd(x, y, squared=True).item() == pytest.approx(2 - 2 * kernel, rel=1e-6)
    assert mmd(x, y, scales=(1,), bandwidth=50.0).item() == pytest.approx(
        math.sqrt(2 - 2 * math.exp(-0.5)), rel=1e-6
    )


@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (5, 2), (6, 6)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scales": (1,)},
        {"scales": (3, 0.5, 1, 1, 64, 2)},
        {"bandwidth": 0.7},
        {"squared": True},
        {"squared": True, "bandwidth": 20.0},
    ],
)
def test_mmd_matches_double_loops(sizes, options):
    x, y = features(*sizes, 3)
    check(mmd(x, y, **options), x, y, looped(x, y, **options))


@pytest.mark.parametrize("options", [{}, {"scales": (3, 1)}, {"bandwidth": 0.7}])
def test_mmd_is_its_plain_form(options):
    x, y = features(6, 5, 3)
    plain = plain_mmd(x, y, **options)
    check(plain, x, y, looped(x, y, **options))
    reference = plain.item(), *torch.autograd.grad(plain_mmd(x, y, **options), (x, y))
    check(mmd(x, y, **options), x, y, reference)


def test_mmd_in_float32_matches_double_loops():
    x, y = features(20, 13, 7, dtype=torch.float32)
    loss = mmd(x, y)
    assert loss.dtype == torch.float32
    check(loss, x, y, looped(x, y), 1e-5)


@pytest.mark.parametrize("bandwidth", [0.3, 0.7, 1.1, 1.9])
def test_mmd_with_far_scales_keeps_its_accuracy(bandwidth):
    x, y = torch.zeros(1, 1), torch.ones(1, 1)
    kernel = (math.exp(-1 / bandwidth) + math.exp(-1 / bandwidth / 1024)) / 2
    loss = mmd(x, y, scales=(1, 1024), bandwidth=bandwidth, squared=True)
    assert loss.item() == pytest.approx(2 - 2 * kernel, rel=1e-6)


def test_mmd_matches_scikit_learn():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = (t.detach() for t in features(15, 12, 6))
    sigma = pairwise.euclidean_distances(torch.cat([x, y]), squared=True)
    sigma = sorted(sigma[tuple(torch.triu_indices(27, 27, 1).tolist())])[(27 * 26 // 2 - 1) // 2]
    total = 0.0
    for scale in SCALES:
        kernels = [
            pairwise.rbf_kernel(a, b, gamma=1 / (scale * sigma)).mean()
            for a, b in ((x, x), (y, y), (x, y))
        ]
        total += (kernels[0] + kernels[1] - 2 * kernels[2]) / 5
    assert mmd(x, y).item() == pytest.approx(math.sqrt(total), rel=1e-9)
    assert mmd(x.float(), y.float()).item() == pytest.approx(math.sqrt(total), rel=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_mmd_passes_gradcheck(squared):
    x, y = features(5, 4, 3)
    assert torch.autograd.gradcheck(lambda a, b: mmd(a, b, bandwidth=2.0, squared=squared), (x, y))


def test_mmd_treats_its_median_as_constant():
    x, y = features(6, 5, 2)
    grads = torch.autograd.grad(mmd(x, y), (x, y))
    fixed = mmd(x, y, bandwidth=pair_median(torch.cat([x, y]).tolist()))
    for grad, expected in zip(grads, torch.autograd.grad(fixed, (x, y)), strict=True):
        torch.testing.assert_close(grad, expected)
    # through the median: MMD does not change if all features are scaled, so x·g + y·g = 0
    directional = sum((t * g).sum() for t, g in zip((x, y), grads, strict=True))
    assert abs(directional.item()) > 0.01
    bandwidth = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    mmd(x, y, bandwidth=bandwidth).backward()
    assert bandwidth.grad is None


def test_mmd_with_ties_and_with_most_features_equal():
    x = torch.tensor([[0.0], [0.0], [1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0], [1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    check(mmd(x, y), x, y, looped(x, y))
    # the median is 0: the stated floor, where only equal features have a kernel other than 0
    x = torch.zeros(6, 2, dtype=torch.float64)
    x[0] = 3
    y = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    loss = mmd(x, y)
    loss.backward()
    assert loss.item() == pytest.approx(math.sqrt(1 / 36 + 25 / 36 + 1 - 2 * 5 / 6), rel=1e-9)
    assert y.grad.isfinite().all()


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 150])
def test_mmd_of_identical_sets_is_zero_with_zero_gradient(size, dtype, squared):
    x = 1e3 + 5 * torch.randn(size, 9, generator=generator(), dtype=dtype)
    x.requires_grad_()
    y = x.detach()[torch.randperm(size, generator=generator())].requires_grad_()
    loss = mmd(x, y, squared=squared)
    loss.backward()
    assert loss.item() <= (1e-7 if squared else 0)
    largest = max(x.grad.abs().max(), y.grad.abs().max()).item()
    assert largest <= (1e-6 if squared else 0)


@pytest.mark.parametrize("bandwidth", [None, 1.0, torch.tensor(0.0)])
@pytest.mark.parametrize("value", [0.0, 0.1, -12345.678])
@pytest.mark.parametrize("squared", [False, True])
def test_mmd_of_equal_features_is_zero_with_zero_gradient(bandwidth, value, squared):
    x, y = (torch.full((n, 3), value, requires_grad=True) for n in (7, 4))
    loss = mmd(x, y, bandwidth=bandwidth, squared=squared)
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not y.grad.any()


def test_mmd_squared_is_smooth_where_the_sets_coincide():
    x, _ = features(5, 5, 2)
    direction = torch.randn(5, 2, generator=generator(), dtype=torch.float64)

    def value(step, squared):
        return mmd(x, x + step * direction, bandwidth=2.0, squared=squared).item()

    # quadratic in the step, while the root has a kink
    assert value(1e-4, True) / value(5e-5, True) == pytest.approx(4, rel=1e-3)
    assert value(-1e-4, False) / value(1e-4, False) == pytest.approx(1, rel=1e-3)
    assert value(1e-4, False) / value(5e-5, False) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mmd_leaves_autocast_and_computes_in_float32(dtype):
    x, y = features(40, 30, 16, dtype=dtype)
    labels = labels_of(40, 30, 4)
    wide = [t.detach().float().requires_grad_() for t in (x, y)]
    for match in (mmd, lambda x, y: class_conditional_mmd(x, labels[0], y, labels[1], 4)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = match(x, y)
            plain = match(*wide)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, match(*wide))
        assert torch.equal(loss, plain)
        grads = torch.autograd.grad(loss, (x, y))
        for grad, expected in zip(grads, torch.autograd.grad(plain, wide), strict=True):
            assert grad.dtype == dtype
            assert torch.equal(grad, expected.to(dtype))


def test_mmd_with_one_float64_set_is_float64():
    x, y = features(4, 5, 2)
    expected = mmd(x, y.float().double())
    assert torch.equal(mmd(x, y.float()), expected)
    assert torch.equal(mmd(x.float(), y), mmd(x.float().double(), y))
    assert expected.dtype == torch.float64


@pytest.mark.parametrize("offset", [100.0, 1e4])
def test_mmd_keeps_its_accuracy_far_from_the_origin(offset, form):
    x, y = (
        (t.detach() + offset).requires_grad_() for t in features(30, 30, 8, dtype=torch.float32)
    )
    labels = labels_of(30, 30, 3)
    exact = [t.detach().double().requires_grad_() for t in (x, y)]

    def conditional(x, y):
        return class_conditional_mmd(x, labels[0], y, labels[1], 3)

    for match in (mmd, conditional):
        expected = match(*exact)
        reference = expected.item(), *torch.autograd.grad(expected, exact)
        check(match(x, y), x, y, reference, 1e-4)


def test_mmd_does_not_depend_on_the_order(form):
    x, y = features(9, 7, 3)
    labels = labels_of(9, 7, 3)
    p, q = torch.randperm(9, generator=generator()), torch.randperm(7, generator=generator())
    torch.testing.assert_close(mmd(x[p], y[q]), mmd(x, y))
    torch.testing.assert_close(mmd(y, x), mmd(x, y))
    torch.testing.assert_close(
        class_conditional_mmd(x[p], labels[0][p], y[q], labels[1][q], 3),
        class_conditional_mmd(x, labels[0], y, labels[1], 3),
    )


def test_mmd_of_a_set_without_gradient():
    x, y = features(4, 5, 2)
    expected = torch.autograd.grad(mmd(x, y), x)[0]
    (grad,) = torch.autograd.grad(2 * mmd(x, y.detach()), x)
    torch.testing.assert_close(grad, 2 * expected)
    assert not mmd(x.detach(), y.detach()).requires_grad
    with torch.no_grad():
        assert not mmd(x, y).requires_grad


def test_mmd_takes_non_contiguous_features():
    x, y = features(4, 6, 5)
    torch.testing.assert_close(mmd(x.T.contiguous().T, y), mmd(x, y))


def test_mmd_of_nan_is_nan(form):
    x, y = features(4, 4, 2)
    x, labels = x.detach(), torch.tensor([0, 1, 2, 1])
    for position in range(4):  # 2 is absent from y
        broken = x.clone()
        broken[position, 0] = math.nan
        assert mmd(broken, y).isnan()
        assert class_conditional_mmd(broken, labels, y, labels.clamp(max=1), 3).isnan()


def test_gradient_steps_on_mmd_align_two_sets():
    x, y = features(30, 30, 4, dtype=torch.float32)
    before = mmd(x, y).item()
    optimizer = torch.optim.SGD([y], lr=5.0)
    for _ in range(40):
        optimizer.zero_grad()
        mmd(x.detach(), y).backward()
        optimizer.step()
    assert mmd(x, y).item() < 0.5 * before


# bandwidth


def test_median_bandwidth_is_the_lower_median_over_pairs():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [7.0]])
    # pairs: 1, 4, 9, 16, 36, 49; the full matrix has 4 zeros besides, and each of them twice
    assert median_bandwidth(x, y).item() == 9
    assert median_bandwidth(x, y, diagonal=True).item() == 4
    assert torch.equal(mmd(x, y), mmd(x, y, bandwidth=9.0))
    assert torch.equal(mmd(x, y), mmd(x, y, bandwidth=torch.tensor(9.0)))
    assert not median_bandwidth(x.requires_grad_(), y).requires_grad


@pytest.mark.parametrize("seed", range(5))
def test_median_bandwidth_by_class(seed):
    x, y = (t.detach() for t in features(9, 8, 2, seed=seed))
    labels = labels_of(9, 8, 5, seed)
    for diagonal in (False, True):
        ours = median_bandwidth(x, y, *labels, 5, diagonal=diagonal)
        for c in range(5):
            points = torch.cat([x[labels[0] == c], y[labels[1] == c]])
            if len(points) < 2:
                assert ours[c] == 0
                continue
            distances = (points[:, None] - points).square().sum(2)
            expected = distances.median() if diagonal else pair_median(points.tolist())
            assert ours[c].item() == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
        if not diagonal:
            expected = class_conditional_mmd(x, labels[0], y, labels[1], 5)
            loss = class_conditional_mmd(x, labels[0], y, labels[1], 5, bandwidth=ours)
            torch.testing.assert_close(loss, expected)


def test_reading_of_the_code_is_finite_with_one_sample_on_each_side():
    x, y = features(3, 3, 2)
    labels = torch.arange(3)
    bandwidth = median_bandwidth(x, y, labels, labels, 3, diagonal=True)
    assert bandwidth.tolist() == [0, 0, 0]
    loss = class_conditional_mmd(x, labels, y, labels, 3, bandwidth=bandwidth)
    loss.backward()
    assert loss.item() == pytest.approx(math.sqrt(2), rel=1e-6)  # kernels between the two: 0
    assert x.grad.isfinite().all()


# by class


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options", [{}, {"scales": (1,)}, {"bandwidth": 1.7}, {"squared": True, "scales": (2, 1)}]
)
def test_class_conditional_matches_a_loop_over_classes(form, seed, options):
    # 8 classes of few samples: some absent on one side or both, some of one sample
    x, y = features(10, 13, 3, seed=seed)
    labels = labels_of(10, 13, 8, seed)
    counts = torch.stack([label.bincount(minlength=8) for label in labels])
    assert (counts == 0).any()
    assert (counts == 1).any()
    loss = class_conditional_mmd(x, labels[0], y, labels[1], 8, **options)
    check(loss, x, y, looped_by_class(x, labels[0], y, labels[1], 8, **options))


def test_class_conditional_is_its_plain_form(form):
    x, y = features(10, 13, 3)
    labels = labels_of(10, 13, 8)
    plain = plain_class_conditional_mmd(x, labels[0], y, labels[1], 8)
    reference = plain.item(), *torch.autograd.grad(plain, (x, y))
    check(class_conditional_mmd(x, labels[0], y, labels[1], 8), x, y, reference)


def test_class_conditional_with_one_sample_of_each_class_is_zero(form):
    # no pairs at all, as in a small last batch
    x, y = features(2, 1, 3)
    loss = class_conditional_mmd(x, torch.tensor([0, 2]), y, torch.tensor([1]), 4)
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not y.grad.any()


def test_class_conditional_takes_a_bandwidth_for_each_class(form):
    x, y = features(6, 6, 2)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    widths = [0.5, 3.0, 8.0]
    loss = class_conditional_mmd(x, labels, y, labels, 3, bandwidth=torch.tensor(widths))
    parts = [mmd(x[labels == c], y[labels == c], bandwidth=widths[c]) for c in range(3)]
    torch.testing.assert_close(loss, sum(parts) / 3)


def test_class_conditional_with_one_class_is_mmd(form):
    x, y = features(7, 5, 3)
    zeros = torch.zeros(7, dtype=torch.int32), torch.zeros(5, dtype=torch.int64)
    loss = class_conditional_mmd(x, zeros[0], y, zeros[1], 1)
    torch.testing.assert_close(loss, mmd(x, y))
    grads = [torch.autograd.grad(value, (x, y)) for value in (loss, mmd(x, y))]
    torch.testing.assert_close(*grads)


def test_class_conditional_divides_by_all_classes(form):
    x, y = features(4, 4, 3)
    labels = torch.tensor([0, 0, 1, 1])
    few = class_conditional_mmd(x, labels, y, labels, 2)
    many = class_conditional_mmd(x, labels, y, labels, 50)
    torch.testing.assert_close(many * 25, few)


def test_class_conditional_without_a_common_class_is_zero(form):
    x, y = features(4, 3, 2)
    loss = class_conditional_mmd(x, torch.tensor([0, 0, 1, 2]), y, torch.tensor([3, 4, 4]), 5)
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not y.grad.any()


@pytest.mark.parametrize("squared", [False, True])
def test_class_conditional_of_equal_features_is_zero(form, squared):
    labels = torch.arange(12) % 4
    x = (labels[:, None] + torch.tensor([0.1, 1e3])).requires_grad_()
    y = x.detach().clone().requires_grad_()
    loss = class_conditional_mmd(x, labels, y, labels, 4, squared=squared)
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not y.grad.any()


def test_class_conditional_with_many_classes_is_finite(form):
    x, y = features(150, 150, 16, dtype=torch.float32)
    labels = labels_of(150, 150, 100)
    loss = class_conditional_mmd(x, labels[0], y, labels[1], 100)
    loss.backward()
    assert 0 < loss.item() < math.sqrt(2)
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_class_conditional_passes_gradcheck(form):
    x, y = features(5, 6, 2)
    labels = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([1, 0, 0, 1, 2, 2])
    assert torch.autograd.gradcheck(
        lambda a, b: class_conditional_mmd(a, labels[0], b, labels[1], 3, bandwidth=1.5), (x, y)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [1, 2, 10, 100])
def test_both_forms_agree(monkeypatch, dtype, num_classes):
    x, y = features(90, 70, 12, dtype=dtype)
    labels = labels_of(90, 70, num_classes)
    results = []
    for form in FORMS:
        force(form, monkeypatch)
        loss = class_conditional_mmd(x, labels[0], y, labels[1], num_classes)
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, y))))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize(
    ("sizes", "form"), [([300], "padded"), ([30] * 10, "padded"), ([291] + [1] * 9, "masked")]
)
def test_form_follows_the_sizes_of_the_classes(sizes, form, monkeypatch):
    force(form, monkeypatch)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    x, y = features(len(labels), 1, 2, dtype=torch.float32)
    forced = class_conditional_mmd(x, labels, y, labels[:1], len(sizes))
    monkeypatch.undo()
    used = []
    for name in FORMS:
        monkeypatch.setattr(
            distribution_matching,
            f"_match_{name}",
            lambda *a, n=name: used.append(n) or FORMS[n](*a),
        )
    assert torch.equal(class_conditional_mmd(x, labels, y, labels[:1], len(sizes)), forced)
    assert used == [form]
    # elsewhere than on CPU nobody asks: see test_on_a_gpu_nothing_waits_for_the_device


@pytest.mark.parametrize("bandwidth", [None, torch.ones(3, dtype=torch.float64)])
def test_labels_outside_the_classes_do_not_count_where_they_are_not_checked(bandwidth, request):
    x, y = features(7, 6, 2)
    x_labels, y_labels = torch.tensor([-1, 0, 1, 7, 0, 3, 2]), torch.tensor([1, 3, 7, 0, -5, 1])
    inside_x, inside_y = ((labels >= 0) & (labels < 3) for labels in (x_labels, y_labels))
    parts = x[inside_x], x_labels[inside_x], y[inside_y], y_labels[inside_y]
    expected = class_conditional_mmd(*parts, 3, bandwidth=bandwidth)
    reference = expected.item(), *torch.autograd.grad(expected, (x, y))
    request.getfixturevalue("as_on_a_device")
    loss = class_conditional_mmd(x, x_labels, y, y_labels, 3, bandwidth=bandwidth)
    check(loss, x, y, reference)


# cost


VIEWS = ("alias", "detach", "diagonal", "expand", "select.", "slice", "split", "transpose",
         "unbind", "unsqueeze", "view")  # fmt: skip


class Watch(TorchDispatchMode):
    """Operations, and the bytes of the largest tensor that one of them made."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func.name())
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return out

    @property
    def work(self):
        names = [name.removeprefix("aten::") for name in self.names]
        return [name for name in names if not name.startswith((*VIEWS, "prim"))]


@pytest.mark.parametrize("num_classes", [10, 100, 1000])
def test_class_conditional_needs_few_operations(form, num_classes):
    x, y = features(150, 150, 8, dtype=torch.float32)
    labels = labels_of(150, 150, num_classes)
    with Watch() as watch:
        class_conditional_mmd(x, labels[0], y, labels[1], num_classes).backward()
    assert len(watch.work) <= 120


@pytest.mark.parametrize("dim", [128, 512])
def test_temporaries_are_small(form, dim):
    x, y = features(150, 150, dim, dtype=torch.float32)
    labels = torch.arange(150) % 10
    for match in (mmd, lambda x, y: class_conditional_mmd(x, labels, y, labels, 10)):
        with Watch() as watch:
            match(x, y).backward()
        assert watch.largest <= 1e6


@pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < TorchVersion("2.15"),
    reason="fake CUDA tensors abort the process without a GPU in torch 2.6; seen to work in 2.15",
)
@pytest.mark.parametrize("bandwidth", [None, 2.0])
@pytest.mark.parametrize("squared", [False, True])
def test_on_a_gpu_nothing_waits_for_the_device(bandwidth, squared, monkeypatch):
    pairs = distribution_matching._pairs.__wrapped__  # fake ones are not to be kept
    monkeypatch.setattr(distribution_matching, "_pairs", pairs)
    options = {"bandwidth": bandwidth, "squared": squared}
    # fake tensors hold no values: whatever would read one on the host raises
    with FakeTensorMode():
        x, y = (torch.empty(n, 16, device="cuda", requires_grad=True) for n in (20, 30))
        labels = [torch.empty(n, dtype=torch.int64, device="cuda") for n in (20, 30)]
        mmd(x, y, **options)
        with Watch() as watch:
            loss = class_conditional_mmd(x, labels[0], y, labels[1], 10, **options)
        assert loss.device.type == "cuda"
        assert loss.requires_grad
        median_bandwidth(x, y, *labels, 10, diagonal=True)
    assert len(watch.work) <= 117  # besides two of the backward pass
    words = ("local_scalar", "nonzero", "item", "bincount", "unique", "masked_select", "equal")
    assert not [name for name in watch.names if any(word in name for word in words)]


# errors


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape \(n, D\); got \(3,\)"),
        ({"x": torch.zeros(0, 2)}, ValueError, r"x must .*\(0, 2\)"),
        ({"y": torch.zeros(3, 5)}, ValueError, r"y must have shape \(m, 2\); got \(3, 5\)"),
        ({"y": torch.zeros(3, 2, device="meta")}, ValueError, "y must be on cpu.*; got meta"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "x must .*int64"),
        ({"scales": ()}, ValueError, "number of scales must be at least 1; got 0"),
        ({"scales": (1, 0)}, ValueError, "scales .*got 0"),
        ({"scales": 4}, TypeError, "scales .*int"),
        ({"bandwidth": 0}, ValueError, "bandwidth .*got 0"),
        ({"bandwidth": "median"}, TypeError, "bandwidth .*'median'"),
        ({"bandwidth": torch.tensor(-2.0)}, ValueError, "bandwidth .*-2"),
        ({"bandwidth": torch.tensor(2)}, TypeError, "bandwidth .*int64"),
        ({"bandwidth": torch.ones(2)}, ValueError, r"bandwidth .*\(2,\)"),
        ({"bandwidth": torch.ones((), device="meta")}, ValueError, "bandwidth .* got meta"),
    ],
)
def test_mmd_rejects(changes, error, words):
    arguments = {"x": torch.zeros(3, 2), "y": torch.zeros(3, 2)} | changes
    labels = {"x_labels": torch.zeros(3).long(), "y_labels": torch.zeros(3).long()}
    with pytest.raises(error, match=words):
        class_conditional_mmd(**arguments, **labels, num_classes=3)
    with pytest.raises(error, match=words):
        mmd(arguments.pop("x"), arguments.pop("y"), **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x_labels": torch.tensor([0, 1])}, ValueError, r"x_labels .*\(3,\).*\(2,\)"),
        ({"y_labels": torch.tensor([0, 1, 3])}, ValueError, r"y_labels must be in 0\.\.2; got 3"),
        ({"y_labels": None}, TypeError, "y_labels .*None"),
        ({"y_labels": torch.zeros(3, device="meta").long()}, ValueError, "y_labels .*meta"),
        ({"num_classes": 0}, ValueError, "num_classes .*0"),
        ({"num_classes": None}, TypeError, "num_classes .*None"),
    ],
)
def test_class_conditional_rejects(changes, error, words):
    arguments = {
        "x": torch.zeros(3, 2),
        "x_labels": torch.tensor([0, 1, 2]),
        "y": torch.zeros(3, 2),
        "y_labels": torch.tensor([0, 1, 2]),
        "num_classes": 3,
    } | changes
    with pytest.raises(error, match=words):
        class_conditional_mmd(**arguments)
    with pytest.raises(error, match=words):
        median_bandwidth(**arguments)


def test_pairs_are_listed_once_for_each_size():
    x, y = features(3, 4, 2)
    mmd(x, y)
    with Watch() as watch:
        mmd(x, y)
    assert not [name for name in watch.names if "triu" in name]


def test_mmd_has_no_second_derivative():
    x, y = features(3, 3, 2)
    (grad,) = torch.autograd.grad(mmd(x, y), x, create_graph=True)
    assert not grad.requires_grad
