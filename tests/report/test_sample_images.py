"""What a notebook shows of its data."""

import numpy as np

from hardtrain import load_dataset
from hardtrain.report.notebook import sample_images


def test_sample_images_are_the_first_of_each_class(tiny_set):
    shown = sample_images(datasets=[tiny_set, "digits"], train_size=30, test_size=0)
    used = load_dataset(tiny_set, "train").subset(30)
    first = [used.labels.tolist().index(k) for k in range(3)]
    np.testing.assert_array_equal(shown["images"], used.images[first].numpy())
    assert shown["titles"].tolist() == ["0", "1", "2"]
    assert shown["described"].tolist() == [
        "tiny train: 60 images 1x8x8, 3 classes; used: 30",
        "tiny test: 20 images 1x8x8, 3 classes; used: 20",
        "digits train: 1438 images 1x8x8, 10 classes; used: 30",
        "digits test: 359 images 1x8x8, 10 classes; used: 359",
    ]
