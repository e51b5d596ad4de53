"""Old import path of `duckling_provider.config`, which DAG files copied from earlier versions import."""

from duckling_provider.config import MIB, Database, Encryption, Installation, S3Settings, Settings, load

__all__ = ["MIB", "Database", "Encryption", "Installation", "S3Settings", "Settings", "load"]
