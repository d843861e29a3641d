"""Pre-training targets."""
