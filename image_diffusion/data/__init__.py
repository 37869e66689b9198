"""Images for training: read from Hugging Face data sets, folders or scikit-learn, decoded with Pillow alone.

``load_images(ImageSource(...))`` gives an ``ImageDataset`` of bytes, labels and captions; ``configs/dataset`` holds the
settings of the data sets that have a name.
"""

from image_diffusion.data.dataset import ImageDataset
from image_diffusion.data.load import load_images
from image_diffusion.data.record import RUN_RECORD, recorded_images
from image_diffusion.data.source import CorruptImageError, ImageDataError, ImageSource

__all__ = [
    "RUN_RECORD",
    "CorruptImageError",
    "ImageDataError",
    "ImageDataset",
    "ImageSource",
    "load_images",
    "recorded_images",
]
