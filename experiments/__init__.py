"""Experiments: the only code that reads argv, prints, and writes results. Run `python -m experiments`."""
