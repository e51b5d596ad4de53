"""Configuration: ``databases.json`` and the environment, as frozen objects. Import it from here."""

from duckling_provider.config.databases import MIB, Database, Encryption, Installation, S3Settings, Settings, load

__all__ = ["MIB", "Database", "Encryption", "Installation", "S3Settings", "Settings", "load"]
