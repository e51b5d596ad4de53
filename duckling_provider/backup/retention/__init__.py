"""Which backups stay, and the removal of the others and of what killed runs left."""
