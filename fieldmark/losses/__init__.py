"""The losses, one a file: a function, and a module beside it."""
