"""A catalogue of bad inputs, and of odd ones that are good: what strangers give, and what they get for it.

One module for each kind of input lists its cases; `table.py` gathers them and writes docs/bad_inputs.md;
tests/test_strangers.py runs them, tests/test_strangers_fuzz.py makes up more.
"""
