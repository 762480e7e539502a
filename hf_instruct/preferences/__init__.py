"""Preference pairs and rewards for training."""
