"""Put this file beside duckling.py, in Airflow's dags folder: it makes the DAG that tells what is wrong with any entry.

A file of its own, because it must go on where an entry, or all of databases.json, has a mistake.
"""

from duckling_provider.dag_factory import watch_dag

dag = watch_dag()
