"""Corpus to dataset file, and dataset file to batches. Building needs numpy alone; reading needs torch."""
