"""What runs in Airflow's API server: the REST API and the page."""
