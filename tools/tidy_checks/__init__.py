"""The checks of tools/tidy.py. Each module has check(tree) → iterable of (path, line, what)."""
