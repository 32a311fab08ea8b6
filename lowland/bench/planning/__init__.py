"""Holds the planner's predictions against measured steps."""
