"""Teacher families: how a checkpoint is loaded and how its prompts are laid out."""
