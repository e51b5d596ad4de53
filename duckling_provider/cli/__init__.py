"""The command line `duckling`: one module per group of commands. It works without Airflow."""


def main() -> None:
    """Entry point of the console script; imports the commands only when it is called."""
    from duckling_provider.cli.app import main as run

    run()
