"""The original Node.js server: pausing it, taking its installation over, importing its backups.

Nothing but its Airflow hook, the pause and resume operators and the command line knows this room.
"""
