"""Put this file into Airflow's dags folder: it makes a backup DAG and a restore DAG for every entry of databases.json.

Airflow skips files in which the words "airflow" and "dag" do not occur; this sentence has both.
"""

from duckling_provider import config
from duckling_provider.dag_factory import build_dags

globals().update(build_dags(config.load()))
