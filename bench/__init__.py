"""Benchmarks behind a correctness gate; see README.md."""
