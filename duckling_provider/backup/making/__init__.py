"""Making a backup: the consistent copy of a replica, and the object that is stored of it."""
