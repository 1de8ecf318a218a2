"""The training loop with its learners, losses, schedules, checkpoints and metrics."""
