"""The REST adapter: the table of routes, problem documents, OpenAPI. It translates and decides nothing."""
