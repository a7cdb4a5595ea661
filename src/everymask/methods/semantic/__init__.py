"""Semantic segmentation: one class for every pixel."""
