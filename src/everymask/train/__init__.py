"""The training engine: loop, schedule, moving average, checkpoints, validation and threshold tuning."""
