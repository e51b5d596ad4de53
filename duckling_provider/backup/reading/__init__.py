"""Reading a stored backup back: verified nowhere, or restored, with what of it lies on this machine already."""
