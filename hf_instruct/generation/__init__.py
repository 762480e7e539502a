"""Answer the test split with the untuned and the tuned model."""
