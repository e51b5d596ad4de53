"""The page "Duckling" in Airflow's navigation: HTML over `web.services`."""
