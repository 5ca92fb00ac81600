"""Which experiment: one file each; its docstring holds the command and the result expected."""
