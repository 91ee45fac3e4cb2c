"""The scripts that make the demo model in assets/demo: data, tokenizer, training, evaluation and model card."""
