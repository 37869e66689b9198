"""How good generated images are: distances between sets of images, in the features of a chosen network."""

from image_diffusion.metrics.clip import ClipExtractor, ClipScorer, clip_score
from image_diffusion.metrics.cmmd import cmmd
from image_diffusion.metrics.digits_cnn import DigitsCnn
from image_diffusion.metrics.efficientnet import EfficientNetLite0
from image_diffusion.metrics.evaluate import MEASURES, METRICS, check_measurable, evaluate_features
from image_diffusion.metrics.extractor import FeatureExtractor
from image_diffusion.metrics.frechet import frechet_distance
from image_diffusion.metrics.inception import Inception
from image_diffusion.metrics.kept_reference import kept_reference
from image_diffusion.metrics.kid import KernelDistance, kernel_distance
from image_diffusion.metrics.pixels import Pixels
from image_diffusion.metrics.prdc import NeighbourhoodScores, neighbourhood_scores
from image_diffusion.metrics.random_conv import RandomConv
from image_diffusion.metrics.record import (
    Measurement,
    MetricRecord,
    add_measurements,
    as_json,
    read_measurements,
    result_key,
    save_measurements,
)
from image_diffusion.metrics.reference import ReferenceStatistics, reference_statistics
from image_diffusion.metrics.statistics import FeatureStatistics, RunningStatistics

__all__ = [
    "MEASURES",
    "METRICS",
    "ClipExtractor",
    "ClipScorer",
    "DigitsCnn",
    "EfficientNetLite0",
    "FeatureExtractor",
    "FeatureStatistics",
    "Inception",
    "KernelDistance",
    "Measurement",
    "MetricRecord",
    "NeighbourhoodScores",
    "Pixels",
    "RandomConv",
    "ReferenceStatistics",
    "RunningStatistics",
    "add_measurements",
    "as_json",
    "check_measurable",
    "clip_score",
    "cmmd",
    "evaluate_features",
    "frechet_distance",
    "kept_reference",
    "kernel_distance",
    "neighbourhood_scores",
    "read_measurements",
    "reference_statistics",
    "result_key",
    "save_measurements",
]
