"""Making a backup: a consistent copy of the replica, and the object that is stored of it."""
