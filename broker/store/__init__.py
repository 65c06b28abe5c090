"""What the ports are kept in: memory, and SQLite. A folder of adapters; `memory.py` and `sql.py` are its doors."""
