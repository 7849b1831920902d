"""Many machines: a Ray cluster writes memories and decodes them; one process has the store."""
