"""What ``scripts/bench`` runs: drivers that measure one row each, and the program that repeats and compares them.

Each measurement is a process of its own (``driver``) with a server and a data folder of its own, so that another
commit's tree can stand in for this one. A driver starts what it measures as further processes (``child``), so that
the CPU of each can be told apart.
"""
