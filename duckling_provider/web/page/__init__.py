"""The page "Duckling" in Airflow's navigation, rendered here, standing on the functions of `duckling_provider.api`."""
