"""The fused scan on the CPU, compiled by Numba. The rest of the library calls `backend.py` only.

Imports are absolute, so that `import numba` always means the library.
"""
