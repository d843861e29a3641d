"""Calibrated compactors: closed-form maps from a few batches, for a student that works before its first step.

Nearest ideas: He et al. 2017 (channel pruning with least squares), Ashkboos et al. 2024 (SliceGPT).
"""
