"""The main job: agents look at every file of a folder. ``scripts/run`` starts it, and `python -m examples.main_job`."""
