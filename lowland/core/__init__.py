"""What all else stands on: vectors, batches, probes, geometries, schedules, errors. Torch alone."""
