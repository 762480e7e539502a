"""Teach a language model to follow instructions: prompts, fast exact fine-tuning, answers, and scores with error bars."""

__version__ = "0.1.0"
