"""Figures: one module each, with AIM, `met(value)` and `measure()`. `python -m benchmarks` lists them."""
