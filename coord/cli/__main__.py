"""``python -m coord.cli``: the command ``coord``, for callers that know only the path of the interpreter."""

from coord.cli import main

main()
