"""The weight dataset: a zoo folder becomes shards and an index, and is read again."""
