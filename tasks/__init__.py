"""What the flows are made of: workspaces, DVC stages, tracking and the registry. Nothing here loads a model."""
