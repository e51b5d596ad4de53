"""Put this file beside duckling.py: it shows the bad entries of databases.json among Airflow's import errors.

A file of its own, because a file that raises has no DAGs, and the good entries must go on.
"""

from duckling_provider import config
from duckling_provider.dag_factory import bad_entries

error = bad_entries(config.load())
if error is not None:
    raise error
