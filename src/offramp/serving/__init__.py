"""Answers for people: an artifact that takes images, paths, texts or arrays, and gives labels."""

from offramp.serving.loading import load_predictor
from offramp.serving.prediction import Prediction
from offramp.serving.predictor import Predictor

__all__ = ["Prediction", "Predictor", "load_predictor"]
