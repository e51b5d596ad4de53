"""Object stores: the narrow interface, S3, and reading in parallel ranges."""
