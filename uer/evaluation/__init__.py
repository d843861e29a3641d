"""Judging models: MLM on held-out text, agreement with a teacher, similarity of sentences, retrieval."""
