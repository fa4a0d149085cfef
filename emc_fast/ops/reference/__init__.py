"""Definitions: every operator in plain PyTorch, for any device and dtype including float64, differentiable; the truth of every test."""
