"""Benchmarks of `evotok bench`: time and memory, against a plain reference and the limits of the machine."""
