"""Datasets: which images are nominal, which defective, where their masks are; and reading them."""

from sfrjax.datasets.images import IMAGE_EXTENSIONS, list_images, read_image, read_mask
from sfrjax.datasets.layouts import DATASETS, Category, Sample, load_dataset

__all__ = [
    "DATASETS",
    "IMAGE_EXTENSIONS",
    "Category",
    "Sample",
    "list_images",
    "load_dataset",
    "read_image",
    "read_mask",
]
