"""Several trainings: comparisons and their budgets."""
