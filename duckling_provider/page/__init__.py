"""The page "Duckling" in Airflow's navigation: server-rendered, standing on the functions of `duckling_provider.api`."""
