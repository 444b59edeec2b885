"""The benchmarks of ``scripts/bench``: a driver for each row, and the program that repeats and compares the rows.

Each measurement runs in its own process (``driver``) with its own server and data folder, so that the tree of another
commit can replace this one. A driver starts what it measures as further processes (``child``), so that the CPU time of
each is known.
"""
