"""What our operators, sensor and trigger share: calls into the core, progress lines, the pool of transfers."""
