"""What `headstart.adapters.openai_agents` is made of."""
