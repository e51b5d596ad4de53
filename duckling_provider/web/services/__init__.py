"""What the REST API and the page stand on: who calls, what runs recorded, status, runs, actions."""
