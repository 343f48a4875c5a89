"""A model that answers: greedy answers, first-token scores, reference texts, and a cache around all of them."""
