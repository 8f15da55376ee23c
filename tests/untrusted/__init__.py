"""Catalogue of untrusted input: files, requests and checkpoints from others, and the answer that each gets.

Each module lists the cases of some entry points; `table.py` gathers them and writes docs/bad_inputs.md;
tests/test_untrusted_input.py runs them, tests/test_untrusted_fuzz.py generates more.
"""
