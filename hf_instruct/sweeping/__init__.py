"""Many runs of one experiment: what to vary, which to try next, which to choose."""
