"""Students of several runs side by side: which is best at equal depth, and is the difference more than chance."""
