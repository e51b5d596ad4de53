"""Which backups stay; the others are removed here, and with them what killed runs left."""
