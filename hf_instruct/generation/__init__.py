"""Generation: answers to the test split, chat, and next-token exploration, all with the same decoding.

`decoding` turns a batch of prompts into completions. `decoding_loop` makes that fast, and can be deleted on its own:
`decoding` would hand every batch to `generate()`. It computes a shared prefix once and drops finished rows, 1.5 times
faster than batched `generate()`, 8 times one by one (docs/performance.md: GPT-2 124M, two CPU cores, float32).
`answers` makes batches as large as the memory allows. `endpoint` has a server answer instead.
"""
