"""Compare: read finished runs and files of verdicts, and say how they differ and agree."""
