"""The publish stage: a run's model on the Hub, or in another program's format."""
