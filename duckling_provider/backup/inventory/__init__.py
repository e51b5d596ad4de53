"""Which backups there are, here and in the store, what each is, and what is known of it."""
