"""Embeddings: word + position + segment."""
