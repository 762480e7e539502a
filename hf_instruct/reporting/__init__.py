"""The report stage: what a run came to, as a page and as text."""
