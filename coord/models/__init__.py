"""Data types: agents, tasks, messages, facts and records. No I/O, no clock."""
