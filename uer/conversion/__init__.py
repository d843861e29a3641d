"""From a checkpoint to a student and its files."""
