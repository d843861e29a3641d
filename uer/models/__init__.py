"""The plain BERT."""
