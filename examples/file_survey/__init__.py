"""The file survey: agents examine every file of a folder. Start it with ``scripts/run``."""
