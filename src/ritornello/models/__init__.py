"""Models: what tasks train."""

from ritornello.models.language_model import LanguageModel
from ritornello.models.ngram import NGramModel
from ritornello.models.parser import Parser, SentenceParser
from ritornello.models.predictor import Predictor
from ritornello.models.sampling import generate, narrow
from ritornello.models.tree import SpanClassifier, TreeClassifier

__all__ = [
    "LanguageModel",
    "NGramModel",
    "Parser",
    "Predictor",
    "SentenceParser",
    "SpanClassifier",
    "TreeClassifier",
    "generate",
    "narrow",
]
