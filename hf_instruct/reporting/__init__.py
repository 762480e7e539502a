"""The report stage: the results of a run, as a page and as text."""
