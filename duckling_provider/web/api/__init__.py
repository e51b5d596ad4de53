"""The REST API: routes over `web.services`. Nothing here runs in a task."""
