"""Side by side with other engines: workloads, models, adapters and what those engines reached elsewhere."""
