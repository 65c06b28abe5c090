"""The numbers that we answer for, measured: `python -m benchmarks`, or `make bench`."""
