"""What the literature does about large mini-batches: scaled learning rates, regime adaptation."""

import dataclasses

from hardtrain import checks
from hardtrain.errors import ParameterError


def with_batch_size(run, batch_size: int, *, lr_scaling: str = "none", same_updates: bool = False):
    r"""The same training with another batch size.

    .. math:: \eta_B = \eta \cdot \frac{B}{B_0} \ \text{(linear)}, \quad
              \eta_B = \eta \sqrt{B / B_0} \ \text{(sqrt)}

    Args:
        run: a ``Run`` with the batch size :math:`B_0` and the rate :math:`\eta`.
        batch_size: B.
        lr_scaling: ``none``, ``linear`` or ``sqrt``.
        same_updates: regime adaptation: the number of epochs and every epoch of the schedule are
            multiplied by :math:`B / B_0`, a whole number, so that there are as many updates as
            with :math:`B_0`: exactly where B divides the number of images, else see
            `num_updates`. ``evaluate_every`` stays as it is.

    Raises:
        ParameterError: names the argument; also for ``same_updates`` where B is no multiple
            of :math:`B_0`.

    Source:
        Linear: Goyal et al., arXiv 1706.02677. Square root: Krizhevsky, arXiv 1404.5997. Regime
        adaptation: Hoffer, Hubara, Soudry, arXiv 1705.08741.

    Example:
        >>> from hardtrain import Run
        >>> small = Run(dataset="digits", network="cnn_small", epochs=10, batch_size=32, lr=0.01)
        >>> large = with_batch_size(small, 128, lr_scaling="linear", same_updates=True)
        >>> large.batch_size, large.lr, large.epochs
        (128, 0.04, 40)
    """
    ratio = checks.integer("batch_size", batch_size, low=1) / run.batch_size
    factors = {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}
    factor = factors[checks.choice("lr_scaling", lr_scaling, factors)]
    changes = {"batch_size": batch_size, "lr": run.lr * factor}
    if same_updates:
        if ratio != int(ratio):
            raise ParameterError(
                f"batch_size = {batch_size} is not a multiple of {run.batch_size}, so the number "
                "of epochs that makes as many updates is not whole"
            )
        names = ("epochs", "step_epochs", "warmup_epochs")
        changes |= {name: getattr(run, name) * int(ratio) for name in names}
        changes["milestones"] = tuple(epoch * int(ratio) for epoch in run.milestones)
    return dataclasses.replace(run, **changes)


def num_updates(run, num_train: int) -> int:
    """Updates of the whole training on so many images.

    Example:
        >>> from hardtrain import Run
        >>> small = Run(dataset="digits", network="cnn_small", epochs=30, batch_size=32)
        >>> large = with_batch_size(small, 256, same_updates=True)
        >>> [num_updates(run, 512) for run in (small, large)]
        [480, 480]
        >>> [num_updates(run, 300) for run in (small, large)]  # short last batches
        [300, 480]
    """
    whole, rest = divmod(checks.integer("num_train", num_train, low=1), run.batch_size)
    return run.epochs * (whole + (rest > 0 and not run.drop_last))
