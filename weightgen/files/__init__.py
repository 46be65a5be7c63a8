"""Files: written whole or not at all, canonical safetensors, streams, checkpoints of other libraries."""
