"""Would a backup and a restore work, and what is promised: looks at what the other rooms make, and changes nothing."""
