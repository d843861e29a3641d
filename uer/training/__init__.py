"""Learners and the loop that trains them."""
