"""From samples to batches: preprocessing, augmentation, sampling and loading."""
