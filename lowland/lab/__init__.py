"""Training runs that can be compared: tasks, models, recipes, budgets, checkpoints and run files."""
