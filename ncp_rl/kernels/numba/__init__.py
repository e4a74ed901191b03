"""The fused scan on the CPU, compiled by Numba. `backend.py` is what the rest of the library calls.

Imports are absolute, so that `numba` alone always is the library.
"""
