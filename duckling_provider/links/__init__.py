"""Links on task instances: one to the object in S3."""
