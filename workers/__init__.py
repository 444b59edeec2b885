"""The processes that turn facts into state: ``python -m workers registry|distributor|router``, any number of each."""
