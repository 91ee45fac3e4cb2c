"""Whether a model's answers are right: tasks, the models that are asked, and what may be concluded from the answers."""
