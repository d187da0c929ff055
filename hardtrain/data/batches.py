"""Image sets as tensors on the device; batches that carry their indices; batched augmentation.

    from hardtrain.data.samplers import UniformBatchSampler

    train = load_dataset("cifar10", "train", device="auto")
    transform = Transform.of(train, crop_padding=4, flip=True)
    sampler = UniformBatchSampler(len(train), 128, generator=torch.Generator().manual_seed(0))
    for inputs, targets, indices in Batches(train, transform, sampler, generator=augmentation):
        ...

The whole set lies on the device as uint8; a batch is gathered, mirrored, cropped and
normalised there, all at once. Random numbers are drawn on the CPU from the caller's generator,
so that CPU and GPU see the same augmentation, and no batch waits for the device.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from hardtrain import checks
from hardtrain.data.images import ImageDataset
from hardtrain.errors import ParameterError


class Batch(NamedTuple):
    """What the loop sees, all on the data set's device."""

    inputs: Tensor  # (B, C, H, W) float32
    targets: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, positions in the data set


class PairedBatch(NamedTuple):
    """A batch, and another one that meets it."""

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    second: Batch


@dataclass(frozen=True)
class Transform:
    r"""From uint8 images to network inputs, a batch at a time, on the images' device.

    .. math:: x = (pixel / 255 - mean) / std

    Args:
        mean, std: one number a channel, in units of the pixel range [0, 1].
        size: first resize to ``size`` x ``size`` pixels (bilinear, antialiased; the aspect ratio
            is not kept); 0 leaves the size alone.
        crop_padding: pad with that many black pixels on each side and cut the original size
            out at a random place; 4 in the papers, 0 is none.
        flip: mirror left and right with probability 1/2, before padding.

    Raises:
        ParameterError: an argument is not of that kind; names it.

    Example:
        >>> from hardtrain import load_dataset
        >>> train = load_dataset("digits", "train")
        >>> transform = Transform.of(train, crop_padding=1)
        >>> transform(train.images[:32], torch.Generator().manual_seed(0)).shape
        torch.Size([32, 1, 8, 8])
        >>> inputs = transform.without_augmentation()(train.images)
        >>> round(inputs.std(correction=0).item(), 4)
        1.0
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int = 0
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        checks.integer("size", self.size, low=0)
        checks.integer("crop_padding", self.crop_padding, low=0)
        checks.flag("flip", self.flip)
        if len(self.mean) != len(self.std) or not self.mean:
            raise ParameterError(f"mean has {len(self.mean)} channels, std {len(self.std)}")
        for mean, std in zip(self.mean, self.std, strict=True):
            checks.number("mean", mean)
            checks.number("std", std, low=0, above=True)

    @classmethod
    def of(
        cls, dataset: ImageDataset, *, size: int = 0, crop_padding: int = 0, flip: bool = False
    ) -> "Transform":
        """With the mean and standard deviation (1/n) of all pixels of ``dataset``, per channel.

        A channel of one value gets std 1.
        """
        means, stds = dataset.channel_moments
        return cls(means, tuple(std or 1.0 for std in stds), size, crop_padding, flip)

    @property
    def is_random(self) -> bool:
        """Whether a call needs a generator."""
        return self.crop_padding > 0 or self.flip

    def without_augmentation(self) -> "Transform":
        """The same size and normalisation, nothing random: for evaluation."""
        return replace(self, crop_padding=0, flip=False)

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """``images`` uint8 ``(B, C, H, W)`` -> float32 ``(B, C, H, W)`` on the same device.

        Args:
            images: as in `ImageDataset`.
            generator: on the CPU; every random number comes from it.

        Raises:
            ParameterError: wrong images, or a random transform without a CPU generator.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ParameterError(
                f"images are {images.dtype} {tuple(images.shape)}; "
                f"wanted uint8 (B, {len(self.mean)}, H, W)"
            )
        return self.apply(images, _moved(self.draw(images.shape, generator), images.device))

    def draw(self, shape: Sequence[int], generator: Generator | None) -> list[Tensor]:
        """What is random about a batch of images of ``shape (B, C, H, W)``: on the CPU, one or two
        rows int64 ``(B,)`` for `apply`, none if nothing is.

        Raises:
            ParameterError: a random transform without a CPU generator.
        """
        if not self.is_random:
            return []
        checks.cpu_generator("generator", generator)
        batch, channels, height, width = shape
        if self.size:
            height = width = self.size
        number, rows = torch.arange(batch), []
        if self.flip:
            rows.append(number + batch * torch.randint(2, (batch,), generator=generator))
        if self.crop_padding:
            places = 2 * self.crop_padding + 1
            top, left = torch.randint(places, (2, batch), generator=generator)
            high, wide = height + places - 1, width + places - 1
            rows.append((number * channels * high + top) * wide + left)
        return rows

    def apply(self, images: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """Inputs from ``images`` and what `draw` gave, on their device."""
        if self.size and images.shape[2:] != (self.size, self.size):
            images = functional.interpolate(
                images.float(), (self.size, self.size), mode="bilinear", antialias=True
            )
        # two copies of rows, not one gather of pixels: half the time on a CPU
        if self.flip:
            images = torch.cat([images, images.flip(-1)]).index_select(0, rows[0])
        if self.crop_padding:
            _, channels, height, width = images.shape
            images = functional.pad(images.contiguous(), (self.crop_padding,) * 4)
            high, wide = images.shape[2:]
            # a view of all windows that begin anywhere in the padded batch
            span = ((channels - 1) * high + height - 1) * wide + width
            shape = (images.numel() - span + 1, channels, height, width)
            windows = images.as_strided(shape, (1, high * wide, wide, 1))
            images = windows.index_select(0, rows[-1])
        scale, shift = _scale_and_shift(self.mean, self.std, images.device)
        return images.float().mul_(scale).add_(shift)


@functools.lru_cache(maxsize=64)
def _scale_and_shift(mean: tuple, std: tuple, device: torch.device) -> tuple[Tensor, Tensor]:
    # kept, because making them on a GPU waits for it
    scale = [[[1 / (255 * s)]] for s in std]
    shift = [[[-m / s]] for m, s in zip(mean, std, strict=True)]
    return torch.tensor(scale, device=device), torch.tensor(shift, device=device)


def _moved(rows: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """``rows``, int64 ``(B,)`` on the CPU, on ``device``: to a GPU in one copy, and from memory
    that the host need not wait for."""
    if device.type != "cuda" or not rows:
        return [row.to(device) for row in rows]
    together = torch.empty(len(rows), len(rows[0]), dtype=torch.int64, pin_memory=True)
    return list(torch.stack(list(rows), out=together).to(device, non_blocking=True).unbind())


class Batches:
    """The batches that a sampler asks for, transformed; one pass of the sampler per ``iter``.

    Args:
        dataset: what to take from; gathering happens on its device.
        transform: from uint8 to inputs.
        batch_sampler: any iterable of ``list[int]`` or integer tensors of positions.
        generator: for a random transform; on the CPU.
        channels_last: give ``inputs`` that memory format.

    Raises:
        ParameterError: a random transform without generator; while iterating, an index that is
            not in the data set.

    Example:
        >>> from hardtrain import load_dataset
        >>> test = load_dataset("digits", "test")
        >>> batches = Batches(test, Transform.of(test), [[3, 1], [2]])
        >>> [batch.indices.tolist() for batch in batches]
        [[3, 1], [2]]
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Transform,
        batch_sampler: Any,
        *,
        generator: Generator | None = None,
        channels_last: bool = False,
    ):
        if transform.is_random:
            checks.cpu_generator("generator", generator)
        self.dataset, self.transform, self.batch_sampler = dataset, transform, batch_sampler
        self.generator, self.channels_last = generator, channels_last

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        images, labels = self.dataset.images, self.dataset.labels
        for positions in self.batch_sampler:
            if isinstance(positions, np.ndarray):  # perhaps one that runs backwards
                positions = np.ascontiguousarray(positions)
            indices = torch.as_tensor(positions)
            is_integer = not indices.is_floating_point() and indices.dtype != torch.bool
            if indices.ndim != 1 or len(indices) == 0 or not is_integer:
                raise ParameterError(
                    f"a batch of indices is {indices.dtype} {tuple(indices.shape)}; "
                    "wanted integers (B,), B >= 1"
                )
            rows = self.transform.draw((len(indices), *images.shape[1:]), self.generator)
            if indices.device.type == "cpu":
                indices, *rows = _moved([indices.long(), *rows], images.device)
            else:
                indices, rows = indices.to(images.device, torch.int64), _moved(rows, images.device)
            try:
                chosen = images.index_select(0, indices)
            except IndexError:  # a CPU looks by itself; on a GPU, looking would mean waiting
                low, high = indices.min().item(), indices.max().item()
                raise ParameterError(
                    f"index {low if low < 0 else high} is not in 0..{len(images) - 1}"
                ) from None
            inputs = self.transform.apply(chosen, rows)
            if self.channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            yield Batch(inputs, labels.index_select(0, indices), indices)


class PairedBatches:
    """``batches``, each with the next of endless ``others`` as its ``second``."""

    def __init__(self, batches: Batches, others: Iterator[Batch]):
        self.batches, self.others = batches, others
        self.dataset, self.batch_sampler = batches.dataset, batches.batch_sampler

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PairedBatch]:
        for batch, second in zip(self.batches, self.others, strict=False):
            yield PairedBatch(*batch, second)
