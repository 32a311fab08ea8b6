"""Plans of a task's training: the planner's measurements in the processes that torchrun starts."""
