"""The answer stage: the test split answered before and after training; chat and explore use the same decoding.

`decoding` turns a batch of prompts into completions. Two parts make it fast, each of which can be deleted alone (the
times are of docs/performance.md: GPT-2 124M, two CPU cores, float32):

- `decoding_loop`: greedy decoding that computes a common prefix once and drops finished rows: 1.5 times batched
  `generate()`, 8 times one by one. Without it: `decoding` hands every batch to `generate()`.
- `batches`: as many prompts at once as the memory holds, of about one length. Without it: a fixed batch size.
"""
