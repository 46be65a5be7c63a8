"""States as points of one space: canonical order, normal form, tokens, scaling, codecs, AXES by tracing."""
