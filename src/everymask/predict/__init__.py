"""Prediction: images of any size in, segments out."""
