"""The REST API, inside Airflow's API server. `app` puts it together; nothing here runs in a task."""
