"""What stands behind `headstart.adapters.openai`, which loads it."""
