"""States as points in one space: canonical order, normal form, tokens, scaling, codecs, AXES by tracing."""
