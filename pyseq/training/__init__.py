"""Training: the loop, the trainer, checkpoints, precision, distribution, progress."""
