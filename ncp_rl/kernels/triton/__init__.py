"""The fused scan on CUDA, compiled by Triton. `backend.py` is what the rest of the library calls.

Imports are absolute, so that `triton` alone always is the library.
"""
