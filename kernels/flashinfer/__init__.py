"""FlashInfer implementations."""
