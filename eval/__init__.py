"""Evaluation of EvoTok: metrics, suites, benchmarks."""
