"""Alembic environment and revisions, shipped with the program; `server.store.migrate` runs them at start."""
