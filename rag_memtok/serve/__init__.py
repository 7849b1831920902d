"""The server: a store behind OpenAI's API and one of its own, and a client. The extra `serve`."""
