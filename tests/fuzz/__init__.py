"""Random and mutated input at every edge: what others send must not hold up the event loop, fill memory or forge words.

`python -m tests.fuzz --minutes 10 --seed N` plays all edges in turn; a short run of each is in the suite
(`tests/contract/test_fuzz.py`). An edge is a module here that has an `EDGE` (`frame.py` says what that is): add
`tests/fuzz/NAME.py`, and it is found.
"""
