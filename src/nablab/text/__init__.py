"""Names, sentences and times as people write them."""
