"""Images with captions: where they come from, what one item is, and pixels in the shape models want."""

from alignlab.data.dataset import ImageTextDataset, Item
from alignlab.data.images import read_image, resize, to_tensor
from alignlab.data.sources import load_dataset

__all__ = ["ImageTextDataset", "Item", "load_dataset", "read_image", "resize", "to_tensor"]
