"""Reading a backup back: into a restored file, with what of it lies on this machine, or into nothing, to verify it."""
