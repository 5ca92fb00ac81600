"""The platform that collects votes: a starlette application over SQLite. Needs the extra `evals`."""
