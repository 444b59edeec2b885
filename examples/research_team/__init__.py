"""A research team: an orchestrator that can be killed at any time, and agents that answer from Markdown documents."""
