"""What every Airflow process loads: the plugin, and the listener that makes the pool."""
