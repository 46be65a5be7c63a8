"""Tests: one file per source file, and contracts over the registries."""
