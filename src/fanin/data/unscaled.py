"""A well-known mistake, kept for study: a network trains on pixels in [0, 1] and is tested on pixels in [0, 255]."""

from dataclasses import dataclass

import torch

from fanin.data.images import Dataset, Images
from fanin.data.sources import IdxFiles, Outline


@dataclass(frozen=True)
class UnscaledTest:
    """`files` with training and validation images / 255, as data.scale=unit makes them, and test images as they are.

    So a course's notebooks do, where `ToTensor()` divides what the loader yields and `test_data` is the raw array
    beside it. Networks of ReLUs shrug (255 times the input is as good as biases / 255); bounded activations, SELU
    and norms with averages of their own do not. It goes with data.scale=none, which leaves all this alone.
    """

    files: IdxFiles

    def __call__(self, *, root: str, download: bool) -> Dataset:
        loaded = self.files(root=root, download=download)
        train = loaded.train.images.to(torch.float32).div_(255)
        test = loaded.test.images.to(torch.float32)
        return Dataset(Images(train, loaded.train.labels), Images(test, loaded.test.labels), loaded.classes)

    def check_files(self, *, root: str, download: bool) -> Outline:
        return self.files.check_files(root=root, download=download)

    def fetch(self, *, root: str, download: bool) -> None:
        self.files.fetch(root=root, download=download)
