"""Generation: answers to the test split, chat, and next-token exploration, all with the same decoding.

`decoding` turns a batch of prompts into completions. `decoding_loop` is a faster alternative to `generate()`, which
`decoding` could use for every batch. It computes a shared prefix once and drops finished rows, 1.5 times faster than
batched `generate()`, and 8 times faster than one prompt at a time (docs/performance.md: GPT-2 124M, two CPU cores,
float32). `answers` makes batches as large as the memory allows. `endpoint` gets answers from a server instead.
"""
