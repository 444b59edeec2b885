"""``python -m coord.cli``: the command ``coord``, where only the interpreter's place is known."""

from coord.cli import main

main()
