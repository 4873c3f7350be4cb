"""What the adapter for pydantic-ai is made of; it stands in `headstart.adapters`."""
