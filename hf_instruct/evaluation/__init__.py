"""The judge stage: puts responses to a language model, reads its verdicts, keeps both, and sums them up."""
