"""Old import paths of `duckling_provider.config`, for copied DAG files. Nothing else belongs here."""
