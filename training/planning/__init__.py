"""Estimates of what a recipe takes, before weights are loaded: parameters, memory, operations, days, bytes."""
