"""Pairs of answers to one prompt, the better one named: what preference training reads."""
