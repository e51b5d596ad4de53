"""The bytes of objects: how a file becomes one and comes back out of it, piece by piece, on any thread."""
