"""Benchmark of training: real steps of every stage, by the trainers, optimizers and loaders of `evotok train`."""
