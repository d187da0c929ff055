"""From uint8 images to batches: normalisation, augmentation, and the indices that travel along."""

import hashlib

import numpy as np
import pytest
import torch
from helpers import colours, seeded, small_set

from hardtrain import ImageDataset, ParameterError
from hardtrain.data.batches import Batches, PairedBatches, Transform
from hardtrain.data.samplers import UniformBatchSampler

# ---- transforms


def test_transform_of_has_the_mean_and_std_of_the_pixels():
    dataset = small_set()
    transform = Transform.of(dataset)
    pixels = dataset.images.double() / 255
    for c in range(3):
        assert transform.mean[c] == pytest.approx(pixels[:, c].mean().item(), abs=1e-14)
        assert transform.std[c] == pytest.approx(pixels[:, c].std(correction=0).item(), abs=1e-14)
    inputs = transform(dataset.images)
    assert inputs.dtype == torch.float32
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-6
    assert (inputs.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_transform_of_a_constant_channel_has_std_one():
    dataset = ImageDataset.from_arrays(np.full((3, 4, 4), 255, np.uint8), np.zeros(3, int))
    assert Transform.of(dataset) == Transform((1.0,), (1.0,))
    assert Transform.of(dataset)(dataset.images).abs().max() == 0


def test_normalise_matches_each_pixel_by_hand():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    inputs = Transform((0.5, 0.1), (0.25, 0.2))(images)
    torch.testing.assert_close(inputs, torch.tensor([[[[-2.0, 2.0]], [[0.5, 1.5]]]]))


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (1, True)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
def test_crop_and_flip_match_a_loop_over_images(padding, flip, height, width):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (64, 3, height, width), dtype=np.uint8))
    transform = Transform((0.0,) * 3, (1 / 255,) * 3, crop_padding=padding, flip=flip)
    got = transform(images, seeded(3))
    generator = seeded(3)
    mirror = torch.randint(2, (64,), generator=generator) if flip else torch.zeros(64)
    top = left = [0] * 64
    if padding:
        top, left = torch.randint(2 * padding + 1, (2, 64), generator=generator)
    for i in range(64):
        image = images[i].numpy()[:, :, ::-1] if mirror[i] else images[i].numpy()
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        y, x = int(top[i]), int(left[i])
        cut = padded[:, y : y + height, x : x + width]
        torch.testing.assert_close(got[i], torch.from_numpy(cut.astype(np.float32)))


def test_crops_of_images_in_another_memory_layout_are_the_same():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    transform = Transform((0.5,) * 3, (0.5,) * 3, crop_padding=2)
    other = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(transform(other, seeded()), transform(images, seeded()))


def test_augmentation_is_uniform():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 2], image[0, 0, 2, 3] = 255, 128  # the second tells left from right
    num = 18_000
    inputs = Transform((0.0,), (1.0,), crop_padding=1, flip=True)(
        image.expand(num, -1, -1, -1), seeded()
    )
    places = (inputs[:, 0] == 1).flatten(1).int().argmax(1)
    right = inputs[:, 0].roll(-1, 2).flatten(1).gather(1, places[:, None]) > 0
    counts = (places * 2 + right[:, 0]).bincount()
    counts = counts[counts > 0]
    assert len(counts) == 18  # 3 x 3 places, two directions
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


def test_padding_is_black_before_normalisation():
    images = torch.full((200, 1, 4, 4), 255, dtype=torch.uint8)
    inputs = Transform((0.5,), (0.5,), crop_padding=4)(images, seeded())
    assert inputs.unique().tolist() == [-1.0, 1.0]


def test_resize_matches_torchvision_on_each_image():
    from torchvision.transforms.v2 import functional as reference

    images = small_set(num=4, side=24).images
    for size in (10, 24, 37):
        inputs = Transform((0.0,) * 3, (1 / 255,) * 3, size=size)(images)
        for i in range(4):
            wanted = reference.resize(images[i].float(), [size, size], antialias=True)
            torch.testing.assert_close(inputs[i], wanted, atol=1e-3, rtol=0)


def test_resize_comes_before_the_crop():
    images = torch.full((50, 1, 6, 3), 200, dtype=torch.uint8)
    inputs = Transform((0.0,), (1 / 255,), size=12, crop_padding=2)(images, seeded())
    assert inputs.shape == (50, 1, 12, 12)
    black = (inputs == 0).flatten(1).sum(1)
    assert set(black.tolist()) == {
        144 - (12 - dy) * (12 - dx) for dy in range(3) for dx in range(3)
    }


def test_without_augmentation_keeps_size_and_normalisation():
    images = small_set().images
    transform = Transform.of(small_set(), size=10, crop_padding=2, flip=True)
    plain = transform.without_augmentation()
    assert (plain.mean, plain.std, plain.size) == (transform.mean, transform.std, 10)
    assert torch.equal(plain(images), plain(images))
    assert torch.equal(plain(images), Transform.of(small_set(), size=10)(images))


def test_transform_leaves_its_input_and_the_global_generator_alone():
    images = small_set().images
    before, state = images.clone(), torch.get_rng_state()
    for transform in (Transform.of(small_set()), Transform.of(small_set(), crop_padding=2)):
        transform(images, seeded())
        assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": -1}, "size = -1"),
        ({"size": True}, "size = True"),
        ({"crop_padding": 2.5}, "crop_padding = 2.5"),
        ({"flip": 1}, "flip = 1"),
        ({"std": (0.0,)}, "std = "),
        ({"std": (1.0, 1.0)}, "mean has 1 channels, std 2"),
        ({"mean": (float("nan"),)}, "mean = "),
    ],
)
def test_transform_rejects_bad_arguments_by_name(arguments, message):
    with pytest.raises(ParameterError, match=message):
        Transform(**{"mean": (0.0,), "std": (1.0,), **arguments})


def test_transform_rejects_other_images_and_a_missing_generator():
    images = small_set().images
    transform = Transform.of(small_set(), flip=True)
    with pytest.raises(ParameterError, match="generator = None"):
        transform(images)
    with pytest.raises(ParameterError, match=r"float32.*wanted uint8 \(B, 3, H, W\)"):
        transform(images.float(), seeded())
    with pytest.raises(ParameterError, match=r"\(20, 1, 8, 8\)"):
        transform(images[:, :1], seeded())


# ---- batches


def test_batches_carry_the_indices_of_their_images():
    dataset = small_set()
    transform = Transform.of(dataset)
    sampler = UniformBatchSampler(20, 6, generator=seeded())
    batches = Batches(dataset, transform, sampler)
    assert len(batches) == 4
    seen = []
    for inputs, targets, indices in batches:
        assert torch.equal(inputs, transform(dataset.images[indices]))
        assert torch.equal(targets, dataset.labels[indices])
        seen += indices.tolist()
    assert sorted(seen) == list(range(20))
    assert seen != list(range(20))


def test_batches_take_arrays_that_run_backwards():
    data = small_set()
    (batch,) = Batches(data, Transform.of(data), [np.arange(4)[::-1]])
    assert batch.indices.tolist() == [3, 2, 1, 0]


def test_batches_take_lists_tensors_and_arrays():
    sampler = [[3, 3], torch.tensor([1, 2], dtype=torch.int32), np.array([19])]
    batches = Batches(small_set(), Transform.of(small_set()), sampler)
    assert [b.indices.tolist() for b in batches] == [[3, 3], [1, 2], [19]]
    assert all(b.indices.dtype == torch.int64 for b in batches)


def test_batches_repeat_with_equal_generators_and_differ_between_passes():
    dataset = small_set()
    transform = Transform.of(dataset, crop_padding=4, flip=True)
    sampler = torch.arange(20).split(8)

    def passes(seed):
        batches = Batches(dataset, transform, sampler, generator=seeded(seed))
        return [torch.cat([batch.inputs for batch in batches]) for _ in range(2)]

    first, second = passes(5)
    assert torch.equal(first, passes(5)[0])
    assert torch.equal(second, passes(5)[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, passes(6)[0])


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "0e6acab7326d94e2"),
        ({"flip": True}, "6bb7c9aded32a3e3"),
        ({"crop_padding": 4}, "8960d6231197e895"),
        ({"flip": True, "crop_padding": 4}, "a8e46c7aaeaca33e"),
        ({"flip": True, "crop_padding": 2, "size": 16}, "9d42de0b439d4ecb"),
    ],
)
def test_batches_have_the_same_bits_in_every_version_golden(options, digest):
    dataset, found = small_set(num=64, side=12), hashlib.sha256()
    sampler = UniformBatchSampler(64, 24, generator=seeded(1))
    for _ in range(2):
        transform = Transform.of(dataset, **options)
        for batch in Batches(dataset, transform, sampler, generator=seeded(2)):
            for values in batch:
                found.update(values.numpy().tobytes())
    assert found.hexdigest()[:16] == digest


def test_batches_give_channels_last_with_the_same_numbers():
    dataset = small_set()
    plain, last = (
        next(iter(Batches(dataset, Transform.of(dataset), [[1, 2, 3]], channels_last=flag)))
        for flag in (False, True)
    )
    assert torch.equal(plain.inputs, last.inputs)
    assert last.inputs.is_contiguous(memory_format=torch.channels_last)
    assert plain.inputs.is_contiguous()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 20], r"index 20 is not in 0\.\.19"),
        ([-1, 3], r"index -1 is not in 0\.\.19"),
        ([], "B >= 1"),
        (torch.ones(20, dtype=torch.bool), "bool"),
        ([0.0, 1.0], "float32"),
        ([[0, 1]], r"\(1, 2\)"),
    ],
)
def test_batches_reject_indices_that_are_no_positions(indices, message):
    with pytest.raises(ParameterError, match=message):
        list(Batches(small_set(), Transform.of(small_set()), [indices]))


def test_a_pass_of_pairs_takes_no_more_partners_than_it_has_batches():
    dataset, partners = small_set(), iter(range(9))
    pairs = PairedBatches(Batches(dataset, Transform.of(dataset), [[0, 1], [2]]), partners)
    assert [(pair.indices.tolist(), pair.second) for pair in pairs] == [([0, 1], 0), ([2], 1)]
    assert next(partners) == 2


def test_batches_want_a_generator_as_soon_as_they_are_made():
    transform = Transform.of(small_set(), flip=True)
    with pytest.raises(ParameterError, match="generator = None"):
        Batches(small_set(), transform, [[0]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_sees_the_same_batches_without_waiting():
    results = []
    for device in ("cpu", "cuda"):
        dataset = ImageDataset.from_arrays(*colours(num=64), device=device)
        transform = Transform.of(dataset, crop_padding=4, flip=True)
        sampler = UniformBatchSampler(64, 16, generator=seeded(1))
        batches = Batches(dataset, transform, sampler, generator=seeded(2))
        list(batches)
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        try:
            results.append(list(batches))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.indices, other.indices.cpu())
        assert torch.equal(one.targets, other.targets.cpu())
        torch.testing.assert_close(one.inputs, other.inputs.cpu())
