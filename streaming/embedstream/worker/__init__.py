"""What runs on an executor: the model, the task, the messages."""
