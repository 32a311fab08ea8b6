"""Measures how a trained model survives changes of its weights: quantization, noise, and training on a second task."""
