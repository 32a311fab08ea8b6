"""One training: trainer, run, checkpoints."""
