"""Processes: starting them, finding each other, what they tell each other."""
