"""Definitions in plain PyTorch: any dtype, differentiable, the truth of every test."""
