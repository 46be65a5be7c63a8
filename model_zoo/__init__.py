"""The networks whose weights are learnt: architectures, data sources, task sampling, the zoo builder, releases."""
