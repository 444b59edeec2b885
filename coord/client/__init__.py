"""A client of a cell: appends facts and reads what became of them. It changes no state itself."""
