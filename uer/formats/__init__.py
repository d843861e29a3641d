"""Model files: UER (both generations of names) and Hugging Face, in and out."""

from uer.formats.file_model import LoadedModel
from uer.formats.teacher import load_model

__all__ = ["LoadedModel", "load_model"]
