"""Models: what tasks train."""

from ritornello.models.language_model import LanguageModel
from ritornello.models.ngram import NGramModel
from ritornello.models.predictor import Predictor
from ritornello.models.sampling import generate, narrow

__all__ = ["LanguageModel", "NGramModel", "Predictor", "generate", "narrow"]
