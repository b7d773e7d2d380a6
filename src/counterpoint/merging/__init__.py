"""One model from several fine-tuned ones: average, task arithmetic, TIES. Streams tensor by tensor."""

from .merge import METHODS, Method, merge
from .methods import average, task_arithmetic, ties
from .threshold import magnitude_threshold

__all__ = ["METHODS", "Method", "average", "magnitude_threshold", "merge", "task_arithmetic", "ties"]
