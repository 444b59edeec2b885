"""The tests: ordered by what they prove."""
