"""The judge stage: scores responses with a language model, parses and saves its verdicts, and summarizes them."""
