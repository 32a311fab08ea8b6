"""Plans of a task's training, measured in the processes that torchrun starts."""
