"""Model files: UER (both generations of names) and Hugging Face, in and out."""

from uer.formats.teacher import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]
