"""Fine-tune a model on the training split, in full or with LoRA."""
